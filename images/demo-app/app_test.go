package main

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

func served(t *testing.T, environment map[string]string) (*app, string) {
	t.Helper()
	app, err := fromEnvironment(func(name string) string { return environment[name] })
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(app)
	server.Config.Protocols = newServer(app).Protocols
	server.Start()
	t.Cleanup(server.Close)
	return app, server.URL
}

func ask(t *testing.T, url string, header map[string]string) (int, answer) {
	t.Helper()
	request, err := http.NewRequest("GET", url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range header {
		request.Header.Set(name, value)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var said answer
	if err := json.NewDecoder(response.Body).Decode(&said); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, said
}

func TestItSaysWhoItIsAndWhatItWasAsked(t *testing.T) {
	_, url := served(t, map[string]string{"APP_NAME": "orders"})

	status, said := ask(t, url+"/a%2Fb?session-proxy-probe=77", map[string]string{
		"X-Dev-Session": " pr-42 ", "X-Request-Id": "77",
	})

	if status != 200 || said.App != "orders" || said.Version != version || said.Pod == "" {
		t.Errorf("%d %+v", status, said)
	}
	if deref(said.Session) != "pr-42" || said.RequestID != "77" || said.Path != "/a%2Fb?session-proxy-probe=77" {
		t.Errorf("%+v", said)
	}
	if _, said := ask(t, url, nil); said.Session != nil {
		t.Errorf("a session that nobody sent: %q", *said.Session)
	}
}

func TestTheSessionIsTheHeadersOrElseTheBaggageMembers(t *testing.T) {
	app, _ := served(t, map[string]string{"SESSION_HEADER": "x-who", "BAGGAGE_KEY": "who"})
	for _, c := range []struct {
		header http.Header
		want   string
	}{
		{http.Header{"X-Who": {"pr-1"}, "Baggage": {"who=pr-2"}}, "pr-1"},
		{http.Header{"Baggage": {"a=b, who = pr-2;prop=1 ,c=d"}}, "pr-2"},
		{http.Header{"Baggage": {"a=b", "who=pr%2D3%20x=y"}}, "pr-3 x=y"},
		{http.Header{"Baggage": {"who=100%"}}, "100%"},
		{http.Header{"Baggage": {"whoever=pr-4,who"}}, ""},
		{http.Header{"X-Dev-Session": {"pr-5"}}, ""},
	} {
		if got := deref(app.session(c.header)); got != c.want {
			t.Errorf("%v: %q instead of %q", c.header, got, c.want)
		}
	}
}

func TestWhatCarriesASessionIsPassedOnAsItCame(t *testing.T) {
	heads := make(chan *http.Request, 1)
	last := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		heads <- r
		io.WriteString(w, "not JSON")
	}))
	defer last.Close()
	_, url := served(t, map[string]string{"APP_NAME": "web", "DOWNSTREAM_URL": last.URL + "/base/"})

	sent := map[string]string{
		"X-Dev-Session": "pr-42", "Baggage": "dev-session=pr-42,k=%20v;p=1",
		"Traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "Tracestate": "a=b",
		"X-Request-Id": "77", "Authorization": "secret",
	}
	status, said := ask(t, url+"/x%2Fy?q=1&q=%202", sent)

	head := <-heads
	for name, value := range sent {
		if name == "Authorization" {
			value = ""
		}
		if got := head.Header.Get(name); got != value {
			t.Errorf("%s: %q instead of %q", name, got, value)
		}
	}
	if head.RequestURI != "/base/x%2Fy?q=1&q=%202" {
		t.Error(head.RequestURI)
	}
	if status != 200 || len(said.Downstream) != 1 || string(said.Downstream[0].Answer) != `"not JSON"` {
		t.Errorf("%d %+v", status, said)
	}
}

func TestAnswersNestAsDeepAsTheCallsWere(t *testing.T) {
	_, db := served(t, map[string]string{"APP_NAME": "db"})
	_, api := served(t, map[string]string{"APP_NAME": "api", "DOWNSTREAM_URL": db})
	_, mail := served(t, map[string]string{"APP_NAME": "mail"})
	_, web := served(t, map[string]string{"APP_NAME": "web", "DOWNSTREAM_URL": api + " " + mail})

	_, said := ask(t, web, map[string]string{"Baggage": "dev-session=pr-42"})

	var inner answer
	if err := json.Unmarshal(said.Downstream[0].Answer, &inner); err != nil || inner.App != "api" {
		t.Fatalf("%v %+v", err, said)
	}
	if err := json.Unmarshal(inner.Downstream[0].Answer, &inner); err != nil || inner.App != "db" || deref(inner.Session) != "pr-42" {
		t.Fatalf("%v %+v", err, inner)
	}
	if err := json.Unmarshal(said.Downstream[1].Answer, &inner); err != nil || inner.App != "mail" {
		t.Fatalf("%v %+v", err, said)
	}
}

func TestADownstreamThatFailsIsAFailureThatNamesIt(t *testing.T) {
	silent := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}))
	defer silent.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	_, url := served(t, map[string]string{
		"DOWNSTREAM_URL": silent.URL + " http://" + closed.Addr().String(), "DOWNSTREAM_TIMEOUT": "100ms",
	})

	status, said := ask(t, url, nil)

	if status != http.StatusBadGateway {
		t.Error(status)
	}
	for _, one := range said.Downstream {
		if one.Error == "" {
			t.Errorf("%+v", one)
		}
	}
	_, above := served(t, map[string]string{"DOWNSTREAM_URL": url})
	if status, _ := ask(t, above, nil); status != http.StatusBadGateway {
		t.Errorf("a 502 of a downstream became %d", status)
	}
}

func TestAGRPCCallIsAnsweredOverHTTP2(t *testing.T) {
	_, url := served(t, nil)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := http.Client{Transport: &http.Transport{Protocols: protocols}}
	response, err := client.Post(url+"/x.Y/Z", "application/grpc", strings.NewReader("\x00\x00\x00\x00\x00"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.ProtoMajor != 2 || response.Header.Get("Grpc-Status") != "12" {
		t.Errorf("%+v", response)
	}
}

func TestARequestIsLoggedWithItsTargetAndID(t *testing.T) {
	var lines bytes.Buffer
	log.SetOutput(&lines)
	defer log.SetOutput(os.Stderr)
	app, _ := served(t, nil)
	request := httptest.NewRequest("GET", "/x?session-proxy-probe=77", nil)
	request.Header.Set("X-Request-Id", "id\nforged")
	app.ServeHTTP(httptest.NewRecorder(), request)
	app.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/healthz", nil))
	if text := lines.String(); strings.Count(text, "\n") != 1 ||
		!strings.Contains(text, "/x?session-proxy-probe=77") || !strings.Contains(text, `id\nforged`) {
		t.Error(text)
	}
}

func TestAMistakeInTheEnvironmentIsNamed(t *testing.T) {
	for name, value := range map[string]string{
		"DOWNSTREAM_URL": "shop-api:8080", "DOWNSTREAM_TIMEOUT": "5",
	} {
		_, err := fromEnvironment(func(asked string) string {
			if asked == name {
				return value
			}
			return ""
		})
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s=%s: %v", name, value, err)
		}
	}
}

func TestADrainingAppAnswersWhatItHasAndWhatStillComes(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{})
	slow := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(entered)
		<-release
	}))
	defer slow.Close()
	app, err := fromEnvironment(func(name string) string {
		return map[string]string{"DOWNSTREAM_URL": slow.URL}[name]
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := newServer(app)
	go server.Serve(listener)
	url := "http://" + listener.Addr().String()
	statuses := make(chan int, 1)
	go func() {
		response, err := http.Get(url)
		if err != nil {
			statuses <- 0
			return
		}
		response.Body.Close()
		statuses <- response.StatusCode
	}()
	<-entered

	drained := make(chan error, 1)
	go func() { drained <- drain(app, server, 300*time.Millisecond) }()
	for !app.draining.Load() {
		time.Sleep(time.Millisecond)
	}
	response, err := http.Get(url + "/healthz")
	if err != nil || response.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("%v %v", response, err)
	}
	select {
	case <-drained:
		t.Error("ended with a request in flight")
	case <-time.After(600 * time.Millisecond):
	}
	close(release)
	if status := <-statuses; status != 200 {
		t.Errorf("the request in flight got %d", status)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}
