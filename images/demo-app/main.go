// A tiny app that says who it is and calls others: enough to see the way of a request through a stack.
//
// Every request is answered with JSON that names the app, its version, its pod, the session the request
// carried, and the answers of its downstreams, nested. What carries a session, a trace or an id is passed
// on as it came. gRPC calls are answered too, with UNIMPLEMENTED: nobody has any method here.
//
//	APP_NAME            demo-app
//	PORT                8080; several, separated by blanks, all answer the same
//	DOWNSTREAM_URL      whom to call; several, separated by blanks, are called at once
//	DOWNSTREAM_TIMEOUT  5s
//	SESSION_HEADER      x-dev-session
//	BAGGAGE_KEY         dev-session
//	DRAIN_DELAY         3s; how long requests are still accepted after SIGTERM, while /healthz says 503
//
// `demo-app crash`, run in its container, ends it at once and with an error.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// What is in flight after the delay has this long to finish.
const drainTimeout = 20 * time.Second

// Set by the build.
var version = "dev"

func main() {
	log.SetFlags(log.LstdFlags | log.Lmicroseconds | log.LUTC)
	log.SetOutput(os.Stdout)
	deed := run
	if len(os.Args) > 1 && os.Args[1] == "crash" {
		deed = crash
	}
	if err := deed(); err != nil {
		fmt.Fprintln(os.Stderr, "demo-app:", err)
		os.Exit(1)
	}
}

func run() error {
	app, err := fromEnvironment(os.Getenv)
	if err != nil {
		return err
	}
	delay, err := durationOr(os.Getenv("DRAIN_DELAY"), 3*time.Second)
	if err != nil {
		return fmt.Errorf("DRAIN_DELAY: %w", err)
	}
	server := newServer(app)
	failed := make(chan error, 1)
	for _, port := range strings.Fields(or(os.Getenv("PORT"), "8080")) {
		listener, err := net.Listen("tcp", ":"+port)
		if err != nil {
			return err
		}
		log.Printf("%s %s listens on %s", app.name, version, listener.Addr())
		go func() { failed <- server.Serve(listener) }()
	}

	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	select {
	case err := <-failed:
		return err
	case <-stop.Done():
	}
	cancel() // a second signal ends the process at once
	return drain(app, server, delay)
}

// The kernel gives the first process of a container no signal that it does not handle, not even KILL from inside; Go
// handles QUIT by ending with the code 2.
func crash() error {
	return syscall.Kill(1, syscall.SIGQUIT)
}

// HTTP/1 and, for gRPC, HTTP/2 without TLS on the same port.
func newServer(app *app) *http.Server {
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{Handler: app, Protocols: protocols, ReadHeaderTimeout: 10 * time.Second}
}

// Callers learn of the end later than we do: requests are welcome for a while yet.
func drain(app *app, server *http.Server, delay time.Duration) error {
	log.Print("draining")
	app.draining.Store(true)
	time.Sleep(delay)
	limit, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	if err := server.Shutdown(limit); err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("requests were cut off: %w", err)
	}
	return nil
}

func durationOr(text string, otherwise time.Duration) (time.Duration, error) {
	if text == "" {
		return otherwise, nil
	}
	return time.ParseDuration(text)
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}
