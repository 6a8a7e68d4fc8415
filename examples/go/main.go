// A server with the standard library.
package main

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	release := os.Getenv("LARDER_RELEASE")
	if release == "" {
		release = "unknown"
	}
	port := os.Getenv("PORT")
	if port == "" {
		port = "8080"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		fmt.Fprintf(w, "Hello from Go\nrelease %s\n", release)
	})
	server := &http.Server{Addr: "127.0.0.1:" + port, Handler: mux}

	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer cancel()
	done := make(chan struct{})
	go func() {
		<-stop.Done()
		// Finishes open requests, then exits.
		_ = server.Shutdown(context.Background())
		close(done)
	}()
	log.Printf("listening on %s", port)
	if err := server.ListenAndServe(); err != http.ErrServerClosed {
		log.Fatal(err)
	}
	<-done
}
