package archive

import (
	"context"
	"os"
	"strings"

	"appplatform/internal/cache"
	"appplatform/internal/hint"
	"appplatform/internal/run"
)

// keyring is the file of the package debian-archive-keyring.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Open finds the archive: mirror and securityMirror when given, else the ones
// that the host's own apt uses.
// Without a mirror it still serves what is in the pool.
func Open(ctx context.Context, c *cache.Dir, mirror, securityMirror string) (*Archive, error) {
	a := &Archive{Cache: c, Main: mirror, Security: securityMirror, Keyring: keyring}
	if _, err := os.Stat(keyring); err != nil {
		return nil, hint.Errorf("install the package debian-archive-keyring", "cannot verify packages: %w", err)
	}
	if a.Main == "" {
		// A build from a lock may do without a mirror.
		if a.noMirror = a.askHost(ctx); a.noMirror != nil {
			return a, nil
		}
	}
	a.Proxy = hostProxy(ctx)
	if a.Security == "" {
		base, ok := strings.CutSuffix(strings.TrimRight(a.Main, "/"), "/debian")
		if !ok {
			return nil, hint.Errorf("set SECURITY_MIRROR", "cannot tell where the security archive of %s is", a.Main)
		}
		a.Security = base + "/debian-security"
	}
	a.Main = strings.TrimRight(a.Main, "/")
	a.Security = strings.TrimRight(a.Security, "/")
	return a, nil
}

// hostProxy is the http proxy of the host's apt configuration, if it names one.
func hostProxy(ctx context.Context) string {
	out, err := run.Output(ctx, "apt-config", "--format", "%v%n", "dump", "Acquire::http::Proxy")
	if err != nil {
		return "" // Resolving says what is wrong with apt.
	}
	// Proxies for single hosts follow the common one.
	proxy, _, _ := strings.Cut(string(out), "\n")
	if proxy = strings.TrimSpace(proxy); proxy == "DIRECT" {
		return ""
	}
	return proxy
}

// askHost takes the two archive roots from the host's apt configuration,
// whatever Debian release the host itself runs.
func (a *Archive) askHost(ctx context.Context) error {
	// What apt would ask for: 'ROOT/dists/SUITE/InRelease' NAME SIZE
	out, err := run.Output(ctx, "apt-get", "update", "--print-uris")
	if err != nil {
		return hint.Errorf("install apt, which finds and verifies the packages; MIRROR names a mirror without asking its settings", "cannot ask apt for a mirror: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		root, rest, ok := strings.Cut(strings.TrimPrefix(line, "'"), "/dists/")
		if !ok || !strings.Contains(rest, "/InRelease'") {
			continue
		}
		switch {
		case strings.HasSuffix(root, "/debian-security") && a.Security == "":
			a.Security = root
		case strings.HasSuffix(root, "/debian") && a.Main == "":
			a.Main = root
		}
	}
	if a.Main == "" {
		return hint.Errorf("set MIRROR to one, such as MIRROR=file:///srv/mirror/debian", "cannot find a Debian mirror in the host's apt configuration")
	}
	return nil
}
