package tekton

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
)

// usual are values with which every task does its work, as far as it comes without a cluster.
var usual = map[string]string{
	"run-id":                 runID,
	"build-apps":             "shop-api",
	"changed-app":            "shop-api",
	"entry-app":              "shop-web",
	"built-images":           `{"shop-api":"localhost:5001/shop-api@sha256:` + strings.Repeat("0", 64) + `"}`,
	"deployed-pods":          `{"shop-api":"pr-shop-api-pr-42"}`,
	"intercept-header-value": "x-dev-session:pr-42",
	"intercept-backend":      "mirrord",
	"pr-number":              "42",
	"image-tag":              "run-1",
	"app-revision":           "feature/prices",
	"timeout":                "3s",
	"proxy-service-account":  "session-proxy",
}

const runID = "1c1c1c1c-0000-4000-8000-000000000000"

// ways are the different ways in which a task can be used, each with parameters of its own.
var ways = map[string][]map[string]string{
	"resolve-stack": {
		{"stack": "name: shop\napps:\n  - { name: shop-web, downstream: [shop-api] }\n  - { name: shop-api }\n"},
		{"stack-file": "config/stack.yaml"},
		{"stack-file": "config/stack.yaml", "git-url": "https://git.example/platform.git"},
	},
}

// lists are parameters that are lists of words: their blanks divide.
var lists = []string{"build-apps", "propagation-chain", "test-apps", "namespaces"}

// told is how messages call a parameter otherwise than by its name.
var told = map[string][]string{
	"run-id":                 {"runs/", "the run's name"},
	"build-apps":             {"are not those of", "no app", "no image", "an app"},
	"git-url":                {"a repository's address", "the address of a repository"},
	"git-base-url":           {"a repository's address", "the address of a repository"},
	"git-revision":           {"a branch, a tag or a commit"},
	"app-revision":           {"a branch, a tag or a commit"},
	"image-registry":         {"is not a registry"},
	"image-tag":              {"is not a tag"},
	"app-revisions":          {"a branch, a tag or a commit"},
	"entry-app":              {"the name of an app"},
	"test-apps":              {"the name of an app", "no app of the stack"},
	"stack-file":             {"there is no file"},
	"intercept-header-value": {"does not know the session"},
	"push-registry":          {"is not a registry"},
}

// hostile are the values that every parameter has to bear. CANARY is a file that none of them may make.
var hostile = map[string]string{
	"a command":                 "$(touch CANARY)",
	"a command in a word":       "shop-api$(touch CANARY)",
	"backticks":                 "`touch CANARY`",
	"the end of a quote":        `"; touch CANARY; "`,
	"the end of another quote":  `'; touch CANARY; '`,
	"the next command":          "shop-api; touch CANARY",
	"a pipe":                    "shop-api | touch CANARY",
	"in the background":         "shop-api & touch CANARY &",
	"the next line":             "shop-api\ntouch CANARY\n",
	"an index that is computed": "a[$(touch CANARY)]",
	"blanks of the shell":       "x;touch${IFS}CANARY",
	"a function of jq":          `\(env) "; env | input`,
	"a program of JavaScript":   `"});require("child_process").execSync("touch CANARY");({"`,
	"JSON with a command":       `{"shop-api":"$(touch CANARY)"}`,
	"JSON with another app":     `{"$(touch CANARY)":"x"}`,
	"JSON that does not end":    `{"shop-api":"`,
	"deep JSON":                 strings.Repeat("[", 20000),
	"a great number":            "1e999999",
	"a negative number":         "-1",
	"null":                      "null",
	"an empty list":             "[]",
	"an empty map":              "{}",
	"a YAML anchor bomb":        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f]\n",
	"a YAML tag":                "!!python/object/apply:os.system ['touch CANARY']",
	"an option":                 "--upload-pack=touch CANARY",
	"help":                      "--help",
	"an end of options":         "-- -x",
	"a protocol of git":         "ext::sh -c touch% CANARY",
	"a file of git":             "file:///etc",
	"a path that goes up":       "../../../../../../../../../../../../..CANARY",
	"a path that is absolute":   "CANARY",
	"a folder further up":       "../../../../../../../../../../../../..OUTSIDE",
	"a pattern":                 "*",
	"a home":                    "~root/$HOME",
	"a format":                  "%s%n%1000000d",
	"escapes":                   `\x24(touch CANARY)\n\0\\`,
	"quotes":                    `"'"'"`,
	"a dollar":                  "a$$b$",
	"a reference without end":   "$(",
	"blanks":                    " \t \n ",
	"a return":                  "shop-api\r\n",
	"control bytes":             "\x01\x1b[2J\x07\x7f",
	"other letters":             "ünïcödé ☃ 漢字 🦀 \u202eabc\u0301\ufeff",
	"64 KiB":                    strings.Repeat("a", 64<<10),
	"64 KiB of blanks":          strings.Repeat(" ", 64<<10),
	"64 KiB of words":           strings.Repeat("shop-api ", 64<<10/9),
	"64 KiB of commands":        strings.Repeat("$(touch CANARY)", 64<<10/80),
	"64 KiB of quotes":          strings.Repeat(`"`, 64<<10),
	"127 KiB":                   strings.Repeat("x", 127<<10),
	"nothing":                   "",
}

// references are texts in whose place Tekton or the kubelet could put something.
func references(task *pipelinev1.Task) []string {
	names := []string{"context.taskRun.uid", "context.pipelineRun.uid", "tasks.resolve.results.stack-json"}
	for _, param := range task.Spec.Params {
		names = append(names, "params."+param.Name)
	}
	for _, workspace := range task.Spec.Workspaces {
		names = append(names, "workspaces."+workspace.Name+".path")
	}
	for _, result := range task.Spec.Results {
		names = append(names, "results."+result.Name+".path")
	}
	for _, step := range task.Spec.Steps {
		for _, env := range step.Env {
			if !slices.Contains(names, env.Name) {
				names = append(names, env.Name)
			}
		}
	}
	return names
}

// A parameter's value may name the run, paths of the pod and other parameters, which whoever gives it
// knows. Everything else stays as it was written.
func TestNoValueNamesWhatItsGiverDoesNotKnow(t *testing.T) {
	set, _, err := Load(root, "tasks")
	if err != nil {
		t.Fatal(err)
	}
	Each(set, func(_ Manifest, task *pipelinev1.Task) {
		for _, param := range task.Spec.Params {
			for _, name := range references(task) {
				nameIn(t, task, param.Name, name)
			}
		}
	})
}

func nameIn(t *testing.T, task *pipelinev1.Task, param, name string) {
	t.Helper()
	value := "<$(" + name + ")>"
	place := Place{Params: map[string]string{}, Workspaces: map[string]string{}, Results: "/tekton/results"}
	for _, spec := range task.Spec.Params {
		place.Params[spec.Name] = "known"
	}
	place.Params[param] = value
	for _, workspace := range task.Spec.Workspaces {
		place.Workspaces[workspace.Name] = "/workspace/" + workspace.Name
	}
	processes, err := Processes(task, place)
	if err != nil {
		t.Fatal(err)
	}
	known := regexp.MustCompile(`^<(/workspace/[a-z-]+|/tekton/results/[a-z-]+|0f0f0f0f-0000-4000-8000-000000000000)>$`)
	for at, process := range processes {
		step := task.Spec.Steps[at]
		for _, env := range step.Env {
			if env.Value != "$(params."+param+")" {
				continue
			}
			got := process.variable(env.Name)
			ofParameter := (strings.Contains(got, "known") || strings.Contains(got, value)) && slices.ContainsFunc(step.Env, func(other corev1.EnvVar) bool {
				return other.Name == name && strings.Contains(other.Value, "$(params.")
			})
			if got != value && !ofParameter && !known.MatchString(got) {
				t.Errorf("%s: step %s: %s is %s when %s is %s", task.Name, process.Name, env.Name, got, param, value)
			}
		}
	}
}

func (process Process) variable(name string) string {
	at := slices.IndexFunc(process.Env, func(text string) bool { return strings.HasPrefix(text, name+"=") })
	return strings.TrimPrefix(process.Env[at], name+"=")
}

func TestHostileValuesExecuteNothing(t *testing.T) {
	set, _, err := Load(root, "tasks")
	if err != nil {
		t.Fatal(err)
	}
	Each(set, func(_ Manifest, task *pipelinev1.Task) {
		t.Run(task.Name, func(t *testing.T) {
			t.Parallel()
			cluster := newCluster(t)
			files := files(t, cluster)
			for number, way := range waysOf(task) {
				trial := trial{task: task, way: way, bed: newBed(t, cluster), files: files}
				trial.asUsual(t)
				for _, param := range task.Spec.Params {
					if !trial.reaches(param.Name) {
						continue
					}
					t.Run(fmt.Sprintf("%s %d", param.Name, number+1), func(t *testing.T) { trial.hostileTo(t, param.Name) })
				}
			}
		})
	})
}

func waysOf(task *pipelinev1.Task) []map[string]string {
	if found := ways[task.Name]; found != nil {
		return found
	}
	return []map[string]string{{}}
}

// trial is one task in one way of its use, with what its steps do when all values are usual.
type trial struct {
	task  *pipelinev1.Task
	way   map[string]string
	bed   *bed
	files map[string]string
	usual map[string]outcome
}

func (trial *trial) params(t *testing.T) map[string]string {
	t.Helper()
	params := map[string]string{}
	for _, spec := range trial.task.Spec.Params {
		if value, ok := usual[spec.Name]; ok {
			params[spec.Name] = value
		}
		if value, ok := trial.way[spec.Name]; ok {
			params[spec.Name] = value
		}
		if _, ok := params[spec.Name]; !ok && spec.Default == nil {
			t.Fatalf("there is no usual value of %s", spec.Name)
		}
	}
	return params
}

// asUsual runs each step with what the steps before it have left, or would have.
func (trial *trial) asUsual(t *testing.T) {
	t.Helper()
	trial.usual = map[string]outcome{}
	trial.bed.made(t, trial.files)
	processes, err := Processes(trial.task, trial.bed.place(t, trial.task, trial.params(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, process := range processes {
		before := len(trial.bed.calls(t))
		ended := trial.bed.run(t, process)
		ended.calls = ended.calls[before:]
		trial.usual[process.Name] = ended
		t.Logf("%s as usual: %d: %s", process.Name, ended.code, shortened(ended.output))
		if problem := broken(ended); problem != "" {
			t.Fatalf("%s as usual: %s", process.Name, problem)
		}
	}
}

// hostileTo gives one parameter every hostile value, and the others the usual ones.
func (trial *trial) hostileTo(t *testing.T, param string) {
	values := maps.Clone(hostile)
	for _, name := range references(trial.task) {
		values["references"] += "$(" + name + ") "
	}
	for _, name := range sortedKeys(values) {
		value := strings.ReplaceAll(values[name], "CANARY", trial.bed.in("outside", "canary"))
		value = strings.ReplaceAll(value, "OUTSIDE", trial.bed.in("outside"))
		for _, problem := range trial.with(t, param, value) {
			t.Errorf("%s: %s", name, problem)
		}
	}
}

func (trial *trial) with(t *testing.T, param, value string) []string {
	t.Helper()
	trial.bed.made(t, trial.files)
	trial.bed.cluster.taken()
	params := trial.params(t)
	params[param] = value
	processes, err := Processes(trial.task, trial.bed.place(t, trial.task, params))
	if err != nil {
		return []string{err.Error()}
	}
	var problems []string
	handedOn := false
	for at, process := range processes {
		step := trial.task.Spec.Steps[at]
		if !gets(step, param) && !handedOn {
			continue
		}
		handedOn = handedOn || slices.Contains(handing, step.Name)
		before := len(trial.bed.calls(t))
		ended := trial.bed.run(t, process)
		ended.calls = ended.calls[before:]
		for _, problem := range trial.judge(param, value, process, ended) {
			problems = append(problems, fmt.Sprintf("step %s: %s", process.Name, problem))
		}
		// Tekton runs no step after one that failed.
		if ended.code != 0 {
			break
		}
	}
	return append(problems, trial.left(t)...)
}

// handing are steps from whose files the next steps read what they got.
var handing = []string{"fetch", "resolve"}

// reaches says whether any step gets the parameter. One that is only an image is the kubelet's.
func (trial *trial) reaches(param string) bool {
	return slices.ContainsFunc(trial.task.Spec.Steps, func(step pipelinev1.Step) bool { return gets(step, param) })
}

func gets(step pipelinev1.Step, param string) bool {
	words := strings.Join(slices.Concat(step.Command, step.Args), " ")
	return len(variables(step, param)) > 0 || strings.Contains(words, "$(params."+param+")")
}

// variables are the names of the env with which a step gets a parameter.
func variables(step pipelinev1.Step, param string) []string {
	var names []string
	for _, env := range step.Env {
		if strings.Contains(env.Value, "$(params."+param+")") {
			names = append(names, env.Name)
		}
	}
	return names
}

// judge tells what is wrong with how a step bore a value.
func (trial *trial) judge(param, value string, process Process, ended outcome) []string {
	var problems []string
	tell := func(format string, values ...any) { problems = append(problems, fmt.Sprintf(format, values...)) }
	if problem := broken(ended); problem != "" {
		tell("%s", problem)
	}
	// A value may be told once or twice.
	if len(ended.output) > 4<<10+4*len(value) {
		tell("says %d bytes: %s", len(ended.output), shortened(ended.output))
	}
	if ended.code != 0 && !trial.names(param, value, process, ended) {
		tell("fails without naming what is wrong: %s", shortened(ended.output))
	}
	if !slices.Contains(lists, param) {
		problems = append(problems, trial.divided(process, ended)...)
	}
	for _, uri := range trial.bed.cluster.taken() {
		if problem := strayed(uri); problem != "" {
			tell("asks the cluster for %s: %s", shortened(uri), problem)
		}
	}
	return problems
}

func (trial *trial) step(name string) pipelinev1.Step {
	at := slices.IndexFunc(trial.task.Spec.Steps, func(step pipelinev1.Step) bool { return step.Name == name })
	return trial.task.Spec.Steps[at]
}

// Signs that a program did not expect what it got.
var crashes = regexp.MustCompile(`panicked at|RUST_BACKTRACE|Argument list too long|unbound variable|syntax error|command not found|Traceback|^\s+at .*:\d+:\d+\)?$|jq: error|segmentation fault|stack overflow|memory allocation`)

// broken tells whether a process ended in a way that is not an answer.
func broken(ended outcome) string {
	switch {
	case ended.code == 124 || ended.code == 101 || ended.code >= 126 || ended.code < 0:
		return fmt.Sprintf("ends with %d: %s", ended.code, shortened(ended.output))
	case ended.code != 0 && strings.TrimSpace(ended.output) == "":
		return fmt.Sprintf("ends with %d and says nothing", ended.code)
	case crashes.MatchString(ended.output):
		return "says " + shortened(crashes.FindString(ended.output)) + ": " + shortened(ended.output)
	}
	return ""
}

// names says whether an error tells a person where to look: by the parameter's name, its variable, its
// flag, or a part of its value. An error that the usual values bring too is none of the value's.
func (trial *trial) names(param, value string, process Process, ended outcome) bool {
	if usual := trial.usual[process.Name]; usual.code != 0 && sameKind(usual.output, ended.output) {
		return true
	}
	signs := append([]string{param, strings.TrimSuffix(param, "-value")}, told[param]...)
	for _, name := range variables(trial.step(process.Name), param) {
		signs = append(signs, name, "--"+strings.ToLower(strings.ReplaceAll(name, "_", "-")))
	}
	if part := strings.TrimSpace(strings.ReplaceAll(value, "$$", "$")); part != "" {
		signs = append(signs, part[:min(len(part), 12)], fmt.Sprintf("%q", part[:min(len(part), 12)]))
	}
	return slices.ContainsFunc(signs, func(sign string) bool { return strings.Contains(ended.output, sign) })
}

// sameKind: the same message, whatever is in its quotes.
func sameKind(one, other string) bool {
	first := func(text string) string {
		words := strings.Fields(text)
		return strings.Join(words[:min(4, len(words))], " ")
	}
	return first(one) == first(other)
}

// divided compares the calls with those of usual values: a value is one word, and no option.
func (trial *trial) divided(process Process, ended outcome) []string {
	var problems []string
	usual := trial.usual[process.Name].calls
	for at, call := range ended.calls {
		if len(usual) == 0 {
			break
		}
		if at >= len(usual) || call[0] != usual[at][0] || len(call) != len(usual[at]) {
			wanted := "nothing"
			if at < len(usual) {
				wanted = strings.Join(usual[at], "|")
			}
			return append(problems, fmt.Sprintf("calls %s where %s is usual", shortened(strings.Join(call, "|")), shortened(wanted)))
		}
		for word := range call {
			isOption := strings.HasPrefix(call[word], "-") && call[word] != usual[at][word]
			if isOption && !strings.HasPrefix(usual[at][word], "-") && !slices.Contains(call[:word], "--") {
				problems = append(problems, fmt.Sprintf("gives %s the option %s", call[0], shortened(call[word])))
			}
		}
	}
	return problems
}

// strayed tells whether a path of the API has been bent by a value.
func strayed(uri string) string {
	path, _, _ := strings.Cut(uri, "?")
	switch {
	case filepath.Clean(path) != path:
		return "the path goes up, or has an empty part"
	case !regexp.MustCompile(`^/(api|apis/[a-z0-9.]+)/v[a-z0-9]+(/namespaces/[a-z0-9-]+)?(/[a-z]+(/[a-z0-9.-]+(/[a-z]+)?)?)?$|^/sessions$|^/version$|^/apis?$`).MatchString(path):
		return "that is no path of the API"
	}
	return ""
}

// left tells what is there that must not be.
func (trial *trial) left(t *testing.T) []string {
	t.Helper()
	var problems []string
	entries, err := os.ReadDir(trial.bed.in("outside"))
	if err != nil {
		t.Fatal(err)
	}
	for range entries {
		problems = append(problems, "the canary is there: what the value says was done")
	}
	return problems
}

func shortened(text string) string {
	if len(text) > 300 {
		text = text[:300] + fmt.Sprintf("... (%d bytes)", len(text))
	}
	return fmt.Sprintf("%q", text)
}

// files are what earlier tasks have left, and the repositories of the apps.
func files(t *testing.T, cluster *cluster) map[string]string {
	t.Helper()
	stack, err := os.ReadFile(filepath.Join(root, "config/stacks/stack-one.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	folder := "workspaces/shared-workspace/runs/" + runID + "/"
	files := map[string]string{
		"workspaces/shared-workspace/config/stack.yaml": string(stack),
		folder + "stack.yaml":                           string(stack),
		folder + "stack.json":                           resolved(t, stack),
		folder + "deployed-pods.json":                   usual["deployed-pods"],
		folder + "report.json":                          fmt.Sprintf(`{"apps":[{"app":"shop-api","proxy_admin":%q}]}`, cluster.address()),
		"workspaces/git-credentials/.git-credentials":   "https://user:secret@git.example\n",
		"workspaces/registry-credentials/config.json":   "{}",
		"tree/config/stack.yaml":                        string(stack),
		"results/build-apps":                            "shop-api",
	}
	for _, app := range []string{"shop-web", "shop-api"} {
		for _, file := range []string{"Dockerfile", "tests/postman/web.json", "tests/postman/api.json", "tests/playwright/x", "tests/artillery/load.yml"} {
			text := `{"item":[]}`
			files["volumes/work/sources/"+app+"/"+file] = text
			files["tree/"+file] = text
		}
		files["volumes/work/images/"+app+"/index.json"] = "{}"
	}
	return files
}

// resolved is a stack as the tasks after resolve-stack get it.
func resolved(t *testing.T, stack []byte) string {
	t.Helper()
	bed := &bed{dir: t.TempDir(), path: filepath.Dir(binary(t))}
	bed.write(t, "stack.yaml", string(stack), 0o644)
	bed.folder(t, bed.in("records"))
	bed.folder(t, bed.in("home"))
	ended := bed.run(t, Process{Name: "resolve", Words: []string{"session-proxy", "resolve", bed.in("stack.yaml")}, WorkingDir: bed.dir,
		Env: []string{"STACK_JSON_FILE=" + bed.in("stack.json"), "RESULTS_DIR=" + bed.in("records")}})
	if ended.code != 0 {
		t.Fatal(ended.output)
	}
	text, err := os.ReadFile(bed.in("stack.json"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A parameter in a script is executed; here it has to be seen.
func TestWhatAValueExecutesIsSeen(t *testing.T) {
	task := &pipelinev1.Task{Spec: pipelinev1.TaskSpec{
		Params:       []pipelinev1.ParamSpec{{Name: "stack"}},
		StepTemplate: new(pipelinev1.StepTemplate),
		Steps:        []pipelinev1.Step{{Name: "show", Script: "#!/bin/bash\necho $(params.stack)\n"}},
	}}
	trial := trial{task: task, way: map[string]string{"stack": "shop"}, bed: newBed(t, newCluster(t))}
	trial.asUsual(t)
	task.Spec.Steps[0].Args = []string{"$(params.stack)"}

	problems := trial.with(t, "stack", "$(touch "+trial.bed.in("outside", "canary")+")")

	if !slices.Contains(problems, "the canary is there: what the value says was done") {
		t.Errorf("told only %q", problems)
	}
}
