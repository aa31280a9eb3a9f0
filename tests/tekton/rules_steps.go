package tekton

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
)

// stepRules are what every step of a task has to keep to. Each sees the step as it will run, merged
// with its task's stepTemplate, and says what is wrong with it.
var stepRules = []func(*pipelinev1.Task, pipelinev1.Step) []string{
	named,
	pinned,
	restricted,
	bounded,
	scriptIsText,
	scriptStopsAtFailures,
	scriptDeletesItsOwn,
	noShellWords,
	argumentsNameNothing,
	parametersComeFirst,
	secretsAreFiles,
	filesOfOneRun,
	cleanupNamesWhose,
}

// TaskRules tells where a task breaks the project's rules.
func TaskRules(set *Set) []Problem {
	var problems []Problem
	Each(set, func(manifest Manifest, task *pipelinev1.Task) {
		for _, text := range described(task) {
			problems = append(problems, Problem{manifest.File, manifest.Place(), text})
		}
		for _, text := range floatingDefaults(task.Spec.Params) {
			problems = append(problems, Problem{manifest.File, manifest.Place(), text})
		}
		if len(task.Spec.Sidecars) > 0 {
			problems = append(problems, Problem{manifest.File, manifest.Place(), "has a sidecar, which no rule here judges"})
		}
		steps, err := pipelinev1.MergeStepsWithStepTemplate(task.Spec.StepTemplate, task.DeepCopy().Spec.Steps)
		if err != nil {
			problems = append(problems, Problem{manifest.File, manifest.Place(), err.Error()})
			return
		}
		for number, step := range steps {
			place := "step " + step.Name
			if step.Name == "" {
				place = fmt.Sprintf("step %d", number+1)
			}
			for _, rule := range stepRules {
				for _, text := range rule(task, step) {
					problems = append(problems, Problem{manifest.File, manifest.Place(place), text})
				}
			}
		}
	})
	return problems
}

func named(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	if step.Name == "" {
		return []string{"has no name: logs and statuses would call it by a number"}
	}
	return nil
}

// pinned refuses an image whose content may change under its name.
func pinned(task *pipelinev1.Task, step pipelinev1.Step) []string {
	image := step.Image
	if match := onlyParam.FindStringSubmatch(image); match != nil {
		spec := paramNamed(task.Spec.Params, match[1])
		if spec == nil || spec.Default == nil {
			return nil
		}
		image = spec.Default.StringVal
	}
	return floating(image)
}

var (
	onlyParam = regexp.MustCompile(`^\$\(params\.([^)]+)\)$`)
	byDigest  = regexp.MustCompile(`@sha256:[0-9a-f]{64}$`)
)

func floating(image string) []string {
	if image == "" {
		return []string{"image is empty"}
	}
	if byDigest.MatchString(image) {
		return nil
	}
	_, tag, ok := strings.Cut(path.Base(image), ":")
	if !ok {
		return []string{fmt.Sprintf("image %s has neither tag nor digest", image)}
	}
	if tag == "latest" {
		return []string{fmt.Sprintf("image %s is another one every day", image)}
	}
	return nil
}

// floatingDefaults tells images and tags that are given by default and not pinned.
func floatingDefaults(params []pipelinev1.ParamSpec) []string {
	var problems []string
	for _, param := range params {
		if param.Default == nil {
			continue
		}
		value := param.Default.StringVal
		if value == "latest" {
			problems = append(problems, fmt.Sprintf("param %s is latest by default", param.Name))
		}
		if strings.HasSuffix(param.Name, "-image") && value != "" {
			for _, text := range floating(value) {
				problems = append(problems, fmt.Sprintf("param %s: %s", param.Name, text))
			}
		}
	}
	return problems
}

// Reason is the annotation with which a task excuses what one of its steps needs:
// `session-proxy/reason.STEP: "FIELD, FIELD: why"`. Only the fields that it names are excused.
const Reason = "session-proxy/reason."

func restricted(task *pipelinev1.Task, step pipelinev1.Step) []string {
	fields := unrestricted(step.SecurityContext)
	listed, why, _ := strings.Cut(task.Annotations[Reason+step.Name], ":")
	if strings.TrimSpace(why) == "" {
		listed = ""
	}
	excused := strings.FieldsFunc(listed, func(r rune) bool { return r == ',' || r == ' ' })
	var problems []string
	for _, field := range fields {
		if !slices.Contains(excused, field) {
			problems = append(problems, fmt.Sprintf("securityContext: %s is not restricted, and no %s%s says why", field, Reason, step.Name))
		}
	}
	for _, field := range excused {
		if !slices.Contains(fields, field) {
			problems = append(problems, fmt.Sprintf("%s%s excuses %s, which is restricted", Reason, step.Name, field))
		}
	}
	return problems
}

// unrestricted names the fields with which a step has more rights than the restricted pod security
// standard and a read-only root leave it.
func unrestricted(context *corev1.SecurityContext) []string {
	if context == nil {
		context = new(corev1.SecurityContext)
	}
	is := func(flag *bool, wanted bool) bool { return flag != nil && *flag == wanted }
	var fields []string
	if is(context.Privileged, true) {
		fields = append(fields, "privileged")
	}
	if !is(context.RunAsNonRoot, true) {
		fields = append(fields, "runAsNonRoot")
	}
	if context.RunAsUser == nil || *context.RunAsUser == 0 {
		fields = append(fields, "runAsUser")
	}
	if !is(context.AllowPrivilegeEscalation, false) {
		fields = append(fields, "allowPrivilegeEscalation")
	}
	if !is(context.ReadOnlyRootFilesystem, true) {
		fields = append(fields, "readOnlyRootFilesystem")
	}
	if context.Capabilities == nil || !slices.Contains(context.Capabilities.Drop, "ALL") {
		fields = append(fields, "capabilities.drop")
	}
	if context.Capabilities != nil && len(context.Capabilities.Add) > 0 {
		fields = append(fields, "capabilities.add")
	}
	if context.SeccompProfile == nil || context.SeccompProfile.Type == corev1.SeccompProfileTypeUnconfined {
		fields = append(fields, "seccompProfile")
	}
	return fields
}

func bounded(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	var problems []string
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		if _, ok := step.ComputeResources.Requests[name]; !ok {
			problems = append(problems, fmt.Sprintf("requests no %s", name))
		}
	}
	if _, ok := step.ComputeResources.Limits[corev1.ResourceMemory]; !ok {
		problems = append(problems, "has no limit of memory")
	}
	return problems
}

// scriptIsText keeps Tekton from writing into a script: what it writes, the shell executes.
func scriptIsText(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	var problems []string
	if strings.Contains(step.Script, "$(") {
		problems = append(problems, "script contains $(: values come by env, and a command's output by a pipe or a file")
	}
	if regexp.MustCompile(`\beval\b`).MatchString(step.Script) {
		problems = append(problems, "script evaluates text")
	}
	return problems
}

// scriptStopsAtFailures refuses a script that goes on after something went wrong, and says that all
// is well.
func scriptStopsAtFailures(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	if step.Script == "" {
		return nil
	}
	var problems []string
	first, _, _ := strings.Cut(step.Script, "\n")
	if !strings.HasPrefix(first, "#!") {
		problems = append(problems, "script does not name its interpreter")
	}
	if strings.HasSuffix(first, "sh") && !regexp.MustCompile(`(?m)^set -e`).MatchString(step.Script) {
		problems = append(problems, "script does not begin with set -e")
	}
	if regexp.MustCompile(`\|\|\s*(true|:)(\s|;|$)|(?m)^\s*set \+e`).MatchString(step.Script) {
		problems = append(problems, "script ignores a failure")
	}
	return problems
}

var deletion = regexp.MustCompile(`(?m)kubectl\b.*\bdelete\b.*$`)

// scriptDeletesItsOwn refuses a deletion that is not bound to one run or one session by label: other
// pull requests' objects carry every other label too.
func scriptDeletesItsOwn(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	text := strings.Join(append(slices.Concat(step.Command, step.Args), step.Script), " ")
	for _, line := range deletion.FindAllString(strings.ReplaceAll(text, "\\\n", " "), -1) {
		if !strings.Contains(line, "session-proxy/session=") && !strings.Contains(line, "session-proxy/pipeline-run=") {
			return []string{"deletes without the label of a session or of a pipeline run"}
		}
	}
	return nil
}

// noShellWords is scriptIsText for a script that is an argument of a shell.
func noShellWords(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	words := slices.Concat(step.Command, step.Args)
	if len(words) == 0 || !strings.HasSuffix(path.Base(words[0]), "sh") {
		return nil
	}
	for at, word := range words {
		if at > 0 && strings.HasPrefix(word, "-") && strings.HasSuffix(word, "c") && strings.Contains(strings.Join(words[at:], " "), "$(") {
			return []string{"the words of a shell contain $(: values come by env"}
		}
	}
	return nil
}

// argumentsNameNothing: the kubelet expands $(NAME) in arguments from all of a container's env. And
// a value that begins with a dash must not become an option.
func argumentsNameNothing(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	var problems []string
	ended := false
	for _, word := range slices.Concat(step.Command, step.Args) {
		ended = ended || word == "--"
		if !strings.Contains(word, "$(params.") {
			continue
		}
		if len(step.Env) > 0 {
			problems = append(problems, fmt.Sprintf("argument %s could name each env of the step", word))
		}
		if strings.HasPrefix(word, "$(params.") && !ended {
			problems = append(problems, fmt.Sprintf("argument %s could be an option: put -- before it", word))
		}
	}
	return problems
}

// parametersComeFirst: the kubelet expands $(NAME) in a variable's value from the variables before
// it. Before one with a parameter there may only be such that are parameters themselves.
func parametersComeFirst(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	var problems []string
	before := ""
	for _, env := range step.Env {
		switch {
		case !strings.Contains(env.Value, "$(params."):
			if before == "" {
				before = env.Name
			}
		case before != "":
			problems = append(problems, fmt.Sprintf("env %s has a parameter, which could name %s before it", env.Name, before))
		}
	}
	return problems
}

func secretsAreFiles(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	var problems []string
	for _, env := range step.Env {
		if env.ValueFrom != nil && env.ValueFrom.SecretKeyRef != nil {
			problems = append(problems, fmt.Sprintf("env %s is a secret: mount it as a file", env.Name))
		}
	}
	if len(step.EnvFrom) > 0 {
		problems = append(problems, "envFrom: names that nobody sees here could be named by parameters")
	}
	return problems
}

var (
	fileName     = regexp.MustCompile(`^(\$\(workspaces\.[^)]+\.path\)/)?[^/ ][^ ]*\.(json|ya?ml)$`)
	fileOfRun    = regexp.MustCompile(`^(\$\(workspaces\.[^)]+\.path\)/)?runs/\$\((params\.run-id|context\.pipelineRun\.uid)\)/[^/]+$`)
	fileInScript = regexp.MustCompile(`[\w.-]+\.(json|ya?ml)\b`)
)

// filesOfOneRun: a file of the workspace that is not named after the run may be one of an older run.
func filesOfOneRun(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	var problems []string
	words := slices.Concat(step.Command, step.Args)
	for _, env := range step.Env {
		words = append(words, env.Value)
	}
	for _, word := range words {
		if fileName.MatchString(word) && !fileOfRun.MatchString(word) {
			problems = append(problems, fmt.Sprintf("%s is not in the folder runs/$(params.run-id) of its run", word))
		}
	}
	for _, name := range fileInScript.FindAllString(step.Script, -1) {
		problems = append(problems, fmt.Sprintf("script names the file %s: give it by env, in the folder of its run", name))
	}
	return problems
}

// cleanupNamesWhose: without a run or a session, cleanup could only guess what it may take away.
func cleanupNamesWhose(_ *pipelinev1.Task, step pipelinev1.Step) []string {
	if !runs(step, "cleanup") {
		return nil
	}
	for _, env := range step.Env {
		if env.Name == "PIPELINE_RUN" && env.Value == "$(params.run-id)" {
			return nil
		}
	}
	return []string{"cleans up without PIPELINE_RUN: $(params.run-id)"}
}

// runs says whether the step is this command of session-proxy.
func runs(step pipelinev1.Step, command string) bool {
	words := slices.Concat(step.Command, step.Args)
	if len(words) >= 2 && path.Base(words[0]) == "session-proxy" && words[1] == command {
		return true
	}
	return strings.Contains(step.Script, "session-proxy "+command)
}
