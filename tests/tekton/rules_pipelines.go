package tekton

import (
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// pipelineRules are what every pipeline has to keep to.
var pipelineRules = []func(*Set, *pipelinev1.Pipeline) []string{
	func(_ *Set, pipeline *pipelinev1.Pipeline) []string { return described(pipeline) },
	func(_ *Set, pipeline *pipelinev1.Pipeline) []string { return floatingDefaults(pipeline.Spec.Params) },
	endsWithCleanup,
	finallyUsesNoResult,
	runIsTheRun,
	noResultOfSkippedTask,
	choiceIsCheckedFirst,
}

// PipelineRules tells where pipelines and their runs break the project's rules.
func PipelineRules(set *Set) []Problem {
	var problems []Problem
	Each(set, func(manifest Manifest, pipeline *pipelinev1.Pipeline) {
		for _, rule := range pipelineRules {
			for _, text := range rule(set, pipeline) {
				problems = append(problems, Problem{manifest.File, manifest.Place(), text})
			}
		}
	})
	Each(set, func(manifest Manifest, run *pipelinev1.PipelineRun) {
		problems = append(problems, runRules(set, manifest, run)...)
	})
	return problems
}

var version = regexp.MustCompile(`^\d+\.\d+\.\d+$`)

// described: what catalogs and people look for.
func described(object metav1.Object) []string {
	var problems []string
	annotations := object.GetAnnotations()
	for _, name := range []string{"pipelines.minVersion", "displayName", "categories", "tags", "platforms"} {
		if strings.TrimSpace(annotations["tekton.dev/"+name]) == "" {
			problems = append(problems, "has no annotation tekton.dev/"+name)
		}
	}
	if least := annotations["tekton.dev/pipelines.minVersion"]; least != "" && !version.MatchString(least) {
		problems = append(problems, fmt.Sprintf("tekton.dev/pipelines.minVersion is %q, which is no version", least))
	}
	if object.GetLabels()["app.kubernetes.io/version"] == "" {
		problems = append(problems, "has no label app.kubernetes.io/version")
	}
	return problems
}

// does says whether a task of the pipeline runs this command of session-proxy.
func does(set *Set, task pipelinev1.PipelineTask, command string) bool {
	spec, _ := taskOf(set, task)
	return spec != nil && slices.ContainsFunc(spec.Steps, func(step pipelinev1.Step) bool { return runs(step, command) })
}

func endsWithCleanup(set *Set, pipeline *pipelinev1.Pipeline) []string {
	if len(pipeline.Spec.Finally) == 0 {
		return []string{"has no finally: what it makes would stay when it fails"}
	}
	deploys := slices.ContainsFunc(pipeline.Spec.Tasks, func(task pipelinev1.PipelineTask) bool { return does(set, task, "deploy") })
	at := slices.IndexFunc(pipeline.Spec.Finally, func(task pipelinev1.PipelineTask) bool { return does(set, task, "cleanup") })
	if deploys && at < 0 {
		return []string{"deploys, and no task of finally cleans up"}
	}
	if at >= 0 && len(pipeline.Spec.Finally[at].When) > 0 {
		return []string{"its cleanup may be skipped by when"}
	}
	return nil
}

// finallyUsesNoResult: a task of finally is skipped when a result that it uses is missing, and it is
// missing when something failed.
func finallyUsesNoResult(_ *Set, pipeline *pipelinev1.Pipeline) []string {
	var problems []string
	for _, task := range pipeline.Spec.Finally {
		for _, ref := range pipelinev1.PipelineTaskResultRefs(&task) {
			problems = append(problems, fmt.Sprintf("finally: %s uses the result %s of %s, and is skipped when it is missing", task.Name, ref.Result, ref.PipelineTask))
		}
	}
	return problems
}

// runIsTheRun: tasks of one run share a folder and labels that no other run has.
func runIsTheRun(set *Set, pipeline *pipelinev1.Pipeline) []string {
	const uid = "$(context.pipelineRun.uid)"
	var problems []string
	for _, task := range slices.Concat(pipeline.Spec.Tasks, pipeline.Spec.Finally) {
		if spec, _ := taskOf(set, task); spec != nil && paramNamed(spec.Params, "run-id") != nil {
			at := slices.IndexFunc(task.Params, func(param pipelinev1.Param) bool { return param.Name == "run-id" })
			if at < 0 || task.Params[at].Value.StringVal != uid {
				problems = append(problems, fmt.Sprintf("%s: run-id is not %s", task.Name, uid))
			}
		}
		for _, param := range task.Params {
			if value := param.Value.StringVal; fileName.MatchString(value) && !fileOfRun.MatchString(value) {
				problems = append(problems, fmt.Sprintf("%s: %s is not in the folder runs/%s of its run", task.Name, value, uid))
			}
		}
	}
	return problems
}

// noResultOfSkippedTask: a task that uses a result of a task which `when` skips is skipped too, with
// all that comes behind it.
func noResultOfSkippedTask(_ *Set, pipeline *pipelinev1.Pipeline) []string {
	guards := map[string]pipelinev1.WhenExpressions{}
	for _, task := range pipeline.Spec.Tasks {
		guards[task.Name] = task.When
	}
	var problems []string
	for _, task := range pipeline.Spec.Tasks {
		for _, ref := range pipelinev1.PipelineTaskResultRefs(&task) {
			for _, guard := range guards[ref.PipelineTask] {
				same := func(own pipelinev1.WhenExpression) bool { return reflect.DeepEqual(own, guard) }
				if !slices.ContainsFunc(task.When, same) {
					problems = append(problems, fmt.Sprintf("%s uses the result %s of %s, and is skipped with it", task.Name, ref.Result, ref.PipelineTask))
					break
				}
			}
		}
	}
	return problems
}

// choiceIsCheckedFirst: with a value that no `when` knows, all tasks that it chooses from are
// skipped. So one task takes the value, before anything else and under no condition.
func choiceIsCheckedFirst(_ *Set, pipeline *pipelinev1.Pipeline) []string {
	var problems []string
	for _, choice := range choices(pipeline) {
		check := slices.IndexFunc(pipeline.Spec.Tasks, func(task pipelinev1.PipelineTask) bool {
			takes := func(param pipelinev1.Param) bool { return param.Value.StringVal == choice }
			return len(task.Deps()) == 0 && len(task.When) == 0 && slices.ContainsFunc(task.Params, takes)
		})
		if check < 0 {
			problems = append(problems, fmt.Sprintf("%s chooses tasks, and no first task checks it", choice))
			continue
		}
		first := pipeline.Spec.Tasks[check].Name
		for _, task := range pipeline.Spec.Tasks {
			if task.Name != first && !after(pipeline, task.Name, first, map[string]bool{}) {
				problems = append(problems, fmt.Sprintf("%s does not wait for %s, which checks %s", task.Name, first, choice))
			}
		}
	}
	return problems
}

// choices are the parameters that decide, by `when`, which tasks are run.
func choices(pipeline *pipelinev1.Pipeline) []string {
	var found []string
	for _, task := range pipeline.Spec.Tasks {
		for _, when := range task.When {
			if onlyParam.MatchString(when.Input) && !slices.Contains(found, when.Input) {
				found = append(found, when.Input)
			}
		}
	}
	return found
}

// after says whether a task is run after another, however many are between them.
func after(pipeline *pipelinev1.Pipeline, task, first string, seen map[string]bool) bool {
	if seen[task] {
		return false
	}
	seen[task] = true
	at := slices.IndexFunc(pipeline.Spec.Tasks, func(candidate pipelinev1.PipelineTask) bool { return candidate.Name == task })
	if at < 0 {
		return false
	}
	return slices.ContainsFunc(pipeline.Spec.Tasks[at].Deps(), func(dependency string) bool {
		return dependency == first || after(pipeline, dependency, first, seen)
	})
}

// runRules: what a run has to say beyond its parameters.
func runRules(set *Set, manifest Manifest, run *pipelinev1.PipelineRun) []Problem {
	var texts []string
	texts = append(texts, leavesTimeToCleanUp(run)...)
	for _, param := range run.Spec.Params {
		if strings.HasSuffix(param.Name, "-image") {
			for _, text := range floating(param.Value.StringVal) {
				texts = append(texts, fmt.Sprintf("param %s: %s", param.Name, text))
			}
		}
	}
	if account := run.Spec.TaskRunTemplate.ServiceAccountName; account == "" || account == "default" {
		texts = append(texts, "names no service account: its tasks would run as the namespace's default")
	}
	var problems []Problem
	for _, text := range texts {
		problems = append(problems, Problem{manifest.File, manifest.Place(), text})
	}
	return problems
}

// leavesTimeToCleanUp: finally runs when timeouts.tasks is over, and does not when timeouts.pipeline
// is.
func leavesTimeToCleanUp(run *pipelinev1.PipelineRun) []string {
	timeouts := run.Spec.Timeouts
	if timeouts == nil || timeouts.Tasks == nil || timeouts.Tasks.Duration == 0 {
		return []string{"has no timeouts.tasks: finally would not run when the time is over"}
	}
	whole := time.Hour
	if timeouts.Pipeline != nil {
		whole = timeouts.Pipeline.Duration
	}
	if left := whole - timeouts.Tasks.Duration; whole != 0 && left < 5*time.Minute {
		return []string{fmt.Sprintf("timeouts.tasks leaves finally %s", left)}
	}
	return nil
}

// RightsRules tells rights that nobody needs.
func RightsRules(set *Set) []Problem {
	var problems []Problem
	role := func(manifest Manifest, rules []rbacv1.PolicyRule) {
		for _, rule := range rules {
			if slices.Contains(slices.Concat(rule.Verbs, rule.Resources, rule.APIGroups), "*") {
				problems = append(problems, Problem{manifest.File, manifest.Place(), "grants *: name what is needed"})
			}
		}
	}
	binding := func(manifest Manifest, ref rbacv1.RoleRef) {
		if ref.Name == "cluster-admin" || ref.Name == "admin" {
			problems = append(problems, Problem{manifest.File, manifest.Place(), "grants " + ref.Name})
		}
	}
	Each(set, func(manifest Manifest, object *rbacv1.Role) { role(manifest, object.Rules) })
	Each(set, func(manifest Manifest, object *rbacv1.ClusterRole) { role(manifest, object.Rules) })
	Each(set, func(manifest Manifest, object *rbacv1.RoleBinding) { binding(manifest, object.RoleRef) })
	Each(set, func(manifest Manifest, object *rbacv1.ClusterRoleBinding) { binding(manifest, object.RoleRef) })
	return problems
}

// Judge tells everything that is wrong with the manifests of the folders.
func Judge(root string, folders ...string) (*Set, []Problem, error) {
	set, problems, err := Load(root, folders...)
	if err != nil {
		return nil, nil, err
	}
	for _, check := range []func(*Set) []Problem{References, TaskRules, PipelineRules, RightsRules} {
		problems = append(problems, check(set)...)
	}
	return set, sorted(problems), nil
}
