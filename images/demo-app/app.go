package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Of a downstream's answer; what is longer is cut, and reported as text.
const answerLimit = 1 << 20

// What goes on to the downstreams as it came, beside the session header.
var passedOn = []string{"Baggage", "Traceparent", "Tracestate", "X-Request-Id"}

type app struct {
	name          string
	pod           string
	sessionHeader string
	baggageKey    string
	downstreams   []*url.URL
	client        *http.Client
	draining      atomic.Bool
}

// What the app says of itself and of a request.
type answer struct {
	App        string       `json:"app"`
	Version    string       `json:"version"`
	Pod        string       `json:"pod"`
	Session    *string      `json:"session"` // null: the request carried none
	Method     string       `json:"method"`
	Path       string       `json:"path"` // with its query
	RequestID  string       `json:"request_id,omitempty"`
	Downstream []downstream `json:"downstream"`
}

type downstream struct {
	URL    string          `json:"url"`
	Status int             `json:"status,omitempty"`
	Answer json.RawMessage `json:"answer,omitempty"`
	Error  string          `json:"error,omitempty"`
}

func fromEnvironment(getenv func(string) string) (*app, error) {
	timeout, err := durationOr(getenv("DOWNSTREAM_TIMEOUT"), 5*time.Second)
	if err != nil {
		return nil, fmt.Errorf("DOWNSTREAM_TIMEOUT: %w", err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, err
	}
	app := &app{
		name:          or(getenv("APP_NAME"), "demo-app"),
		pod:           hostname,
		sessionHeader: or(getenv("SESSION_HEADER"), "x-dev-session"),
		baggageKey:    or(getenv("BAGGAGE_KEY"), "dev-session"),
		client:        &http.Client{Timeout: timeout},
	}
	for _, text := range strings.Fields(getenv("DOWNSTREAM_URL")) {
		target, err := url.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("DOWNSTREAM_URL: %w", err)
		}
		if target.Scheme != "http" && target.Scheme != "https" || target.Host == "" {
			return nil, fmt.Errorf("DOWNSTREAM_URL: %q is not an http URL, like http://shop-api:8080", text)
		}
		app.downstreams = append(app.downstreams, target)
	}
	return app, nil
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/healthz" {
		a.health(w)
		return
	}
	began := time.Now()
	var status int
	if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
		status = unimplemented(w)
	} else {
		status = a.answer(w, r)
	}
	log.Printf("%s %q x-request-id=%q session=%q %d %s", r.Method, r.RequestURI,
		r.Header.Get("X-Request-Id"), deref(a.session(r.Header)), status, time.Since(began).Round(time.Microsecond))
}

func (a *app) health(w http.ResponseWriter) {
	if a.draining.Load() {
		http.Error(w, "draining", http.StatusServiceUnavailable)
		return
	}
	fmt.Fprintln(w, "ok")
}

// A gRPC answer without a body: its status stands in the head.
func unimplemented(w http.ResponseWriter) int {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Grpc-Status", "12")
	w.Header().Set("Grpc-Message", "the demo app has no methods")
	w.WriteHeader(http.StatusOK)
	return http.StatusOK
}

// A downstream that failed is a failure of ours: 502, and the body says which.
func (a *app) answer(w http.ResponseWriter, r *http.Request) int {
	said := answer{
		App: a.name, Version: version, Pod: a.pod, Session: a.session(r.Header),
		Method: r.Method, Path: r.URL.RequestURI(), RequestID: r.Header.Get("X-Request-Id"),
		Downstream: a.callAll(r),
	}
	status := http.StatusOK
	for _, one := range said.Downstream {
		if one.Error != "" || one.Status >= 500 {
			status = http.StatusBadGateway
		}
	}
	body, err := json.Marshal(said)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(body, '\n')) // a client that left needs no answer
	return status
}

// All at once; in the order in which they are configured.
func (a *app) callAll(r *http.Request) []downstream {
	answers := make([]downstream, len(a.downstreams))
	var calls sync.WaitGroup
	for i, target := range a.downstreams {
		calls.Go(func() { answers[i] = a.call(r, target) })
	}
	calls.Wait()
	return answers
}

// The same path and query below the downstream's URL.
func (a *app) call(r *http.Request, target *url.URL) downstream {
	to := target.JoinPath(r.URL.EscapedPath())
	to.RawQuery = r.URL.RawQuery
	said := downstream{URL: target.String()}
	request, err := http.NewRequestWithContext(r.Context(), http.MethodGet, to.String(), nil)
	if err != nil {
		said.Error = err.Error()
		return said
	}
	for _, name := range append([]string{http.CanonicalHeaderKey(a.sessionHeader)}, passedOn...) {
		if values := r.Header.Values(name); len(values) > 0 {
			request.Header[name] = values
		}
	}
	response, err := a.client.Do(request)
	if err != nil {
		said.Error = err.Error()
		return said
	}
	defer response.Body.Close()
	said.Status = response.StatusCode
	body, err := io.ReadAll(io.LimitReader(response.Body, answerLimit))
	if err != nil {
		said.Error = err.Error()
	}
	said.Answer = asJSON(body)
	return said
}

// JSON stays as it is, other text becomes a string.
func asJSON(body []byte) json.RawMessage {
	if json.Valid(body) {
		return body
	}
	text, err := json.Marshal(string(body))
	if err != nil {
		return nil
	}
	return text
}

// The session header's value; without that header, the baggage member's.
func (a *app) session(header http.Header) *string {
	if values := header.Values(a.sessionHeader); len(values) > 0 {
		value := strings.TrimSpace(values[0])
		return &value
	}
	for _, field := range header.Values("Baggage") {
		for member := range strings.SplitSeq(field, ",") {
			member, _, _ = strings.Cut(member, ";") // properties
			key, value, found := strings.Cut(member, "=")
			if !found || strings.TrimSpace(key) != a.baggageKey {
				continue
			}
			value = strings.TrimSpace(value)
			if plain, err := url.PathUnescape(value); err == nil {
				value = plain
			}
			return &value
		}
	}
	return nil
}

func deref(text *string) string {
	if text == nil {
		return ""
	}
	return *text
}
