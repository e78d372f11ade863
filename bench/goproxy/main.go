// The peer to beat: Go's httputil.ReverseProxy, with its pool and timeouts set as one would for production.
package main

import (
	"flag"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"time"
)

func main() {
	listen := flag.String("listen", "", "address to listen on")
	upstream := flag.String("upstream", "", "URL to forward to")
	flag.Parse()
	target, err := url.Parse(*upstream)
	if err != nil {
		log.Fatal(err)
	}
	proxy := httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.Out.Host = r.In.Host
			r.SetXForwarded()
		},
		Transport: &http.Transport{
			MaxIdleConns:        100,
			MaxIdleConnsPerHost: 100,
			IdleConnTimeout:     30 * time.Second,
			DisableCompression:  true,
		},
	}
	server := http.Server{
		Addr:         *listen,
		Handler:      &proxy,
		ReadTimeout:  5 * time.Second,
		WriteTimeout: 60 * time.Second,
		// Without it ReadTimeout would also end idle connections, and the idle scenario would measure nothing.
		IdleTimeout: 75 * time.Second,
	}
	log.Fatal(server.ListenAndServe())
}
