package tekton

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

// patience is how long a step may take. The slowest gives up after a timeout of its own.
const patience = time.Minute

// bed is one pod's world on this machine: its folders, the commands of its images, and a cluster that
// has nothing.
type bed struct {
	dir     string
	path    string
	cluster *cluster
}

func newBed(t *testing.T, cluster *cluster) *bed {
	t.Helper()
	bed := &bed{dir: t.TempDir(), cluster: cluster}
	bed.path = strings.Join([]string{bed.in("bin"), images(t, "build"), images(t, "tests"), filepath.Dir(binary(t)), "/usr/local/bin:/usr/bin:/bin"}, ":")
	return bed
}

func (bed *bed) in(parts ...string) string {
	return filepath.Join(append([]string{bed.dir}, parts...)...)
}

// binary is the session-proxy of the images.
func binary(t *testing.T) string {
	t.Helper()
	path := os.Getenv("SESSION_PROXY")
	if path == "" {
		t.Fatal("SESSION_PROXY does not name the session-proxy to run; tests/tekton/run does that")
	}
	return path
}

func images(t *testing.T, name string) string {
	t.Helper()
	folder, err := filepath.Abs(filepath.Join(root, "images", name))
	if err != nil {
		t.Fatal(err)
	}
	return folder
}

// standIns are commands of the images that would leave this machine. Each writes down what it was
// called with, and does as little as lets its caller go on.
var standIns = map[string]string{
	"git": `for word in "$@"; do case "$word" in
init) mkdir -p -- "${@: -1}" ;;
checkout) cp -r -- TREE/. . ;;
rev-parse) echo 0123456789abcdef0123456789abcdef01234567 ;;
esac; done`,
	"skopeo":     `while [ $# -gt 0 ]; do [ "$1" != --digestfile ] || printf 'sha256:%064d' 0 >"$2"; shift; done`,
	"artillery":  `while [ $# -gt 0 ]; do [ "$1" != --output ] || printf '{"aggregate":{"counters":{}}}' >"$2"; shift; done`,
	"buildah":    ``,
	"newman":     ``,
	"playwright": ``,
	"kubectl":    ``,
}

// made makes all folders anew, so that no run sees another's.
func (bed *bed) made(t *testing.T, files map[string]string) {
	t.Helper()
	for _, folder := range []string{"bin", "records", "results", "workspaces", "volumes", "tree", "outside", "home"} {
		if err := os.RemoveAll(bed.in(folder)); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(bed.in(folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range standIns {
		text = strings.ReplaceAll(text, "TREE", bed.in("tree"))
		script := fmt.Sprintf("#!/bin/bash\nprintf '%%s\\0' \"$@\" >%s/%s.$EPOCHREALTIME.$$\n%s\nexit 0\n", bed.in("records"), name, text)
		bed.write(t, "bin/"+name, script, 0o755)
	}
	for name, text := range files {
		bed.write(t, name, text, 0o644)
	}
	config, err := json.Marshal(bed.cluster.config())
	if err != nil {
		t.Fatal(err)
	}
	bed.write(t, "home/kubeconfig", string(config), 0o600)
}

func (bed *bed) write(t *testing.T, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(bed.in(name)), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bed.in(name), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// place gives the task all of its workspaces, and a folder for each other volume.
func (bed *bed) place(t *testing.T, task *pipelinev1.Task, params map[string]string) Place {
	t.Helper()
	place := Place{Params: params, Workspaces: map[string]string{}, Results: bed.in("results"), Volumes: map[string]string{"/tekton/results": bed.in("results")}}
	for _, workspace := range task.Spec.Workspaces {
		place.Workspaces[workspace.Name] = bed.in("workspaces", workspace.Name)
	}
	mounts := task.Spec.StepTemplate.DeepCopy().VolumeMounts
	for _, step := range task.Spec.Steps {
		mounts = append(mounts, step.VolumeMounts...)
	}
	for _, mount := range mounts {
		place.Volumes[mount.MountPath] = bed.in("volumes", mount.MountPath)
	}
	for _, folder := range place.Workspaces {
		bed.folder(t, folder)
	}
	for _, folder := range place.Volumes {
		bed.folder(t, folder)
	}
	return place
}

func (bed *bed) folder(t *testing.T, folder string) {
	t.Helper()
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
}

// outcome is how a process ended, and what it called.
type outcome struct {
	step   string
	code   int
	output string
	calls  [][]string
	took   time.Duration
}

// run starts the process with its own env and that of its image, and nothing else.
func (bed *bed) run(t *testing.T, process Process) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	words := process.Words
	if process.Script != "" {
		words = append(bed.interpreter(t, process.Script), words...)
	} else {
		words = append([]string{bed.command(t, words[0])}, words[1:]...)
	}
	command := exec.CommandContext(ctx, words[0], words[1:]...)
	command.Dir = process.WorkingDir
	tmp := bed.in("home")
	command.Env = append([]string{"PATH=" + bed.path, "HOME=" + tmp, "TMPDIR=" + tmp, "KUBECONFIG=" + bed.in("home/kubeconfig")}, process.Env...)
	// All that it started ends with it.
	command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	command.Cancel = func() error { return syscall.Kill(-command.Process.Pid, syscall.SIGKILL) }
	command.WaitDelay = time.Second
	began := time.Now()
	output, err := command.CombinedOutput()
	ended := outcome{step: process.Name, output: string(output), took: time.Since(began)}
	switch {
	case command.ProcessState == nil:
		// Not started: what a runtime would say too.
		ended.code, ended.output = 128, err.Error()
	case ctx.Err() != nil:
		ended.code, ended.output = 124, fmt.Sprintf("did not end within %s: %s", patience, output)
	default:
		ended.code = command.ProcessState.ExitCode()
	}
	ended.calls = bed.calls(t)
	return ended
}

// command finds a word in the PATH of the image, not in ours.
func (bed *bed) command(t *testing.T, word string) string {
	t.Helper()
	for _, folder := range strings.Split(bed.path, ":") {
		if info, err := os.Stat(filepath.Join(folder, word)); err == nil && !info.IsDir() {
			return filepath.Join(folder, word)
		}
	}
	t.Fatalf("there is no command %q", word)
	return ""
}

func (bed *bed) interpreter(t *testing.T, script string) []string {
	t.Helper()
	bed.write(t, "home/script", script, 0o755)
	first, _, _ := strings.Cut(strings.TrimPrefix(script, "#!"), "\n")
	return append(strings.Fields(first), bed.in("home/script"))
}

// calls are the words with which stand-ins were called, each after the stand-in's name.
func (bed *bed) calls(t *testing.T) [][]string {
	t.Helper()
	entries, err := os.ReadDir(bed.in("records"))
	if err != nil {
		t.Fatal(err)
	}
	var calls [][]string
	for _, entry := range entries {
		text, err := os.ReadFile(bed.in("records", entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		name, _, _ := strings.Cut(entry.Name(), ".")
		calls = append(calls, append([]string{name}, strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")...))
	}
	return calls
}

// cluster is an API server without objects. It writes down what it was asked for.
type cluster struct {
	server *httptest.Server
	lock   sync.Mutex
	asked  []string
	count  int
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	cluster := new(cluster)
	cluster.server = httptest.NewServer(http.HandlerFunc(cluster.answer))
	t.Cleanup(cluster.server.Close)
	return cluster
}

func (cluster *cluster) answer(w http.ResponseWriter, r *http.Request) {
	cluster.lock.Lock()
	defer cluster.lock.Unlock()
	cluster.asked = append(cluster.asked, r.RequestURI)
	w.Header().Set("content-type", "application/json")
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.URL.Path == "/sessions":
		// A proxy's admin port: each time it is asked, it has seen one request more.
		cluster.count++
		fmt.Fprintf(w, `{"sessions":[{"name":"pr-42","requests":%d}]}`, cluster.count)
	case r.Method == http.MethodGet && len(path) >= 3 && path[len(path)-3] == "namespaces":
		fmt.Fprint(w, `{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}`)
	default:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"not found","reason":"NotFound","code":404}`)
	}
}

// taken is what was asked for since the last time.
func (cluster *cluster) taken() []string {
	cluster.lock.Lock()
	defer cluster.lock.Unlock()
	asked := cluster.asked
	cluster.asked = nil
	return asked
}

func (cluster *cluster) address() string {
	return strings.TrimPrefix(cluster.server.URL, "http://")
}

func (cluster *cluster) config() map[string]any {
	return map[string]any{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []any{map[string]any{"name": "test", "cluster": map[string]any{"server": cluster.server.URL}}},
		"users":    []any{map[string]any{"name": "test", "user": map[string]any{}}},
		"contexts": []any{map[string]any{"name": "test", "context": map[string]any{"cluster": "test", "user": "test"}}},
	}
}
