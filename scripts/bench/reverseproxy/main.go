// Command reverseproxy is what somebody writes who puts an app behind Go's own
// proxy: bench measures it beside the webserver.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
)

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: reverseproxy ADDRESS CERTIFICATE SOCKET")
		os.Exit(2)
	}
	if err := serve(os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintf(os.Stderr, "reverseproxy: %v\n", err)
		os.Exit(1)
	}
}

func serve(address, certificate, socket string) error {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: "app"})
			r.SetXForwarded()
		},
		Transport: &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "unix", socket)
			},
			MaxIdleConnsPerHost: 64, DisableCompression: true,
		},
	}
	return http.ListenAndServeTLS(address, certificate, certificate, proxy)
}
