package agent

import (
	"io"
	"os"
	"strings"
	"testing"
)

// menuOf types lines into the menu and returns what it showed.
func menuOf(t *testing.T, u *updatable, lines string) string {
	t.Helper()
	var out strings.Builder
	shells := 0
	err := RescueMenu(t.Context(), u.Machine, Terminal{In: strings.NewReader(lines), Out: &out, Shell: func() error { shells++; return nil }})
	if err != nil {
		t.Errorf("RescueMenu(%q) = %v", lines, err)
	}
	if want := strings.Count("\n"+lines, "\n1\n"); shells != want {
		t.Errorf("RescueMenu(%q) starts %d shells; want %d", lines, shells, want)
	}
	return out.String()
}

func TestMenu(t *testing.T) {
	tests := []struct {
		name, lines string
		want        []string
		leaves      bool
	}{
		{"nothing", "", []string{"App Platform 160002, rescue system of x86_64", "disk      /dev/sda, 4 GiB", "image b   160002, the current one",
			"default   the rescue system starts", "  1  shell", "  9  switch"}, false},
		{"wrong numbers", "0\n10\nreboot\n", []string{`"0" is none of 1 to 9`, `"10" is none`, `"reboot" is none`}, false},
		{"shells", "1\n\n1\n", []string{"exit returns to the menu"}, false},
		{"check", "2\n", []string{"sda2: clean", finished}, false},
		{"resize", "3\n", []string{"nothing to do"}, false},
		{"re-install, on second thoughts", "5\nmaybe\nn\n", []string{"The data partition with all settings stays", "nothing was changed"}, false},
		{"re-install", "5\ny\n", []string{"step 9 of 9", finished}, true},
		{"previous image, no", "6\n\n", []string{"goes back to App Platform 160001", "nothing was changed"}, false},
		{"previous image", "6\nyes\n", []string{"restart into the ramdisk of image a"}, true},
		{"system", "7\n", nil, true},
		{"rescue", "8\n", []string{"The next start leads to the rescue"}, true},
		{"the end in a question", "6\n", []string{"[y/n]"}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			u := updated(t, false)
			u.hard = false
			if test.name == "nothing" {
				u.addSet("a", "160001", 1)
				u.Platform.Keys = []string{u.old.key, u.new.key}
			}
			got := menuOf(t, u, test.lines)
			for _, want := range append(test.want, "Number, or Enter for the menu: ") {
				if !strings.Contains(got, want) {
					t.Errorf("the menu shows\n%s\nwant %q", got, want)
				}
			}
			if u.rebooted != test.leaves {
				t.Errorf("rebooted: %v; want %v", u.rebooted, test.leaves)
			}
			for line := range strings.Lines(got) {
				if len(line) > 81 && strings.HasPrefix(line, "  ") {
					t.Errorf("a line of the menu is longer than 80 characters: %s", line)
				}
			}
		})
	}
}

// A damaged image leads to the question whether the other one will do.
func TestMenuOffersTheOtherImage(t *testing.T) {
	u := updated(t, false)
	u.damage("b", "rootfs.ext4.xz")
	if got := menuOf(t, u, "5\ny\nn\n"); u.rebooted || !strings.Contains(got, "image b is damaged") || !strings.Contains(got, "Image a (160001) is whole") {
		t.Errorf("rebooted: %v, the menu shows\n%s", u.rebooted, got)
	}
	menuOf(t, u, "5\ny\ny\n")
	u.settle(t.Context())
	u.checkSettled("the other image", "160001")
}

// Ctrl-C leads back to the menu, and the line that it kept from being read is
// the next answer. At the prompt it asks again.
func TestMenuInterrupted(t *testing.T) {
	u := updated(t, false)
	u.hard = false
	in, typed := io.Pipe()
	interrupts := make(chan os.Signal)
	said := make(chan string, 100)
	done := make(chan error)
	go func() {
		done <- RescueMenu(t.Context(), u.Machine, Terminal{In: in, Interrupts: interrupts, Out: writerFunc(func(b []byte) (int, error) {
			said <- string(b)
			return len(b), nil
		})})
	}()
	hear := func(want string) {
		t.Helper()
		for text := range said {
			if strings.Contains(text, want) {
				return
			}
		}
	}
	hear("Number, or")
	interrupts <- os.Interrupt
	hear("Number, or")
	_, _ = io.WriteString(typed, "5\n")
	hear("[y/n]")
	interrupts <- os.Interrupt
	hear("interrupted")
	hear("Number, or")
	_, _ = io.WriteString(typed, "7\n")
	must(t, <-done)
	if !u.rebooted {
		t.Error("the machine does not restart")
	}
}

// The answers to the questions about the address.
func TestAnswerNetwork(t *testing.T) {
	static := NetworkArguments{Addr: "192.168.1.20/24"}
	tests := []struct {
		name   string
		before NetworkArguments
		field  int
		text   string
		want   NetworkArguments
		err    string
	}{
		{"dhcp", NetworkArguments{}, askAddress, "DHCP", NetworkArguments{DHCP: true}, ""},
		{"address", NetworkArguments{}, askAddress, "192.168.1.20/24", static, ""},
		{"mask", NetworkArguments{}, askAddress, "192.168.1.20/255.255.255.0", NetworkArguments{Addr: "192.168.1.20/255.255.255.0"}, ""},
		{"no prefix", NetworkArguments{}, askAddress, "192.168.1.20", NetworkArguments{}, "prefix length"},
		{"no address", NetworkArguments{}, askAddress, "192.168.1.300/24", NetworkArguments{}, "is not an IPv4 address"},
		{"IPv6", NetworkArguments{}, askAddress, "2001:db8::1/64", NetworkArguments{}, "is not an IPv4 address"},
		{"prefix", NetworkArguments{}, askAddress, "192.168.1.20/33", NetworkArguments{}, "not between 1 and 32"},
		{"network", NetworkArguments{}, askAddress, "192.168.1.0/24", NetworkArguments{}, "address of the network"},
		{"gateway", static, askGateway, "192.168.1.1", NetworkArguments{Addr: static.Addr, Gateway: "192.168.1.1"}, ""},
		{"no gateway", static, askGateway, "", static, ""},
		{"gateway elsewhere", static, askGateway, "192.168.2.1", static, "outside the network"},
		{"gateway of another kind", static, askGateway, "router", static, "is not an IPv4 address"},
		{"DNS", static, askDNS, "1.1.1.1, 9.9.9.9", NetworkArguments{Addr: static.Addr, DNS1: "1.1.1.1", DNS2: "9.9.9.9"}, ""},
		{"no DNS", static, askDNS, "", static, ""},
		{"too many", static, askDNS, "1.1.1.1 2.2.2.2 3.3.3.3", static, "two DNS servers"},
		{"names", static, askDNS, "dns.example", static, "is not an IP address"},
	}
	for _, test := range tests {
		got, err := answerNetwork(test.before, test.field, test.text)
		switch {
		case test.err == "" && (err != nil || got != test.want):
			t.Errorf("%s: answerNetwork(%q) = %+v, %v; want %+v", test.name, test.text, got, err, test.want)
		case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%s: answerNetwork(%q) = %v; want %q", test.name, test.text, err, test.err)
		}
	}
}
