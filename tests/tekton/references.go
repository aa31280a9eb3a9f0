package tekton

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

// References tells what one manifest says of another that is not so. A webhook sees one object at a
// time; these problems would end a run, or skip a part of it.
func References(set *Set) []Problem {
	var problems []Problem
	Each(set, func(manifest Manifest, pipeline *pipelinev1.Pipeline) {
		problems = append(problems, pipelineReferences(set, manifest, pipeline)...)
	})
	Each(set, func(manifest Manifest, run *pipelinev1.PipelineRun) {
		problems = append(problems, runReferences(set, manifest, run)...)
	})
	problems = append(problems, triggerReferences(set)...)
	return append(problems, kustomizationReferences(set)...)
}

// taskOf is the spec of the task that a pipeline's task runs.
func taskOf(set *Set, task pipelinev1.PipelineTask) (*pipelinev1.TaskSpec, string) {
	if task.TaskSpec != nil {
		return &task.TaskSpec.TaskSpec, ""
	}
	if task.TaskRef == nil {
		return nil, "has neither taskRef nor taskSpec"
	}
	if strings.Contains(task.TaskRef.Name, "$(") {
		return nil, fmt.Sprintf("taskRef %q: the name of a task cannot be a parameter", task.TaskRef.Name)
	}
	if task.TaskRef.Resolver != "" {
		return nil, fmt.Sprintf("taskRef is resolved by %q, which nothing here can follow", task.TaskRef.Resolver)
	}
	found, ok := Named[*pipelinev1.Task](set, task.TaskRef.Name)
	if !ok {
		return nil, fmt.Sprintf("there is no task %q", task.TaskRef.Name)
	}
	return &found.Spec, ""
}

func pipelineReferences(set *Set, manifest Manifest, pipeline *pipelinev1.Pipeline) []Problem {
	var problems []Problem
	tell := func(place, format string, values ...any) {
		problems = append(problems, Problem{manifest.File, manifest.Place(place), fmt.Sprintf(format, values...)})
	}
	specs := map[string]*pipelinev1.TaskSpec{}
	for _, task := range slices.Concat(pipeline.Spec.Tasks, pipeline.Spec.Finally) {
		spec, missing := taskOf(set, task)
		if missing != "" {
			tell(task.Name, "%s", missing)
			continue
		}
		specs[task.Name] = spec
	}
	for _, task := range slices.Concat(pipeline.Spec.Tasks, pipeline.Spec.Finally) {
		spec, ok := specs[task.Name]
		if !ok {
			continue
		}
		for _, text := range givenParams(task.Params, spec.Params, pipeline.Spec.Params, specs) {
			tell(task.Name, "%s", text)
		}
		for _, text := range boundWorkspaces(task.Workspaces, spec.Workspaces, pipeline.Spec.Workspaces) {
			tell(task.Name, "%s", text)
		}
		for _, ref := range pipelinev1.PipelineTaskResultRefs(&task) {
			if text := resultReference(ref, specs); text != "" {
				tell(task.Name, "%s", text)
			}
		}
	}
	for _, result := range pipeline.Spec.Results {
		expressions, _ := result.GetVarSubstitutionExpressions()
		for _, ref := range pipelinev1.NewResultRefs(expressions) {
			if text := resultReference(ref, specs); text != "" {
				tell("result "+result.Name, "%s", text)
			}
		}
	}
	return problems
}

// givenParams holds what is given against what is declared.
func givenParams(given pipelinev1.Params, declared, around []pipelinev1.ParamSpec, specs map[string]*pipelinev1.TaskSpec) []string {
	var problems []string
	for _, param := range given {
		spec := paramNamed(declared, param.Name)
		if spec == nil {
			problems = append(problems, fmt.Sprintf("param %q is not declared", param.Name))
			continue
		}
		if kind := typeOf(param.Value, around, specs); kind != "" && kind != spec.Type {
			problems = append(problems, fmt.Sprintf("param %q is of type %s, given is %s", param.Name, spec.Type, kind))
		}
		if len(spec.Enum) > 0 && !strings.Contains(param.Value.StringVal, "$(") && !slices.Contains(spec.Enum, param.Value.StringVal) {
			problems = append(problems, fmt.Sprintf("param %q is none of %s", param.Name, strings.Join(spec.Enum, ", ")))
		}
	}
	for _, spec := range declared {
		isGiven := slices.ContainsFunc(given, func(param pipelinev1.Param) bool { return param.Name == spec.Name })
		if spec.Default == nil && !isGiven {
			problems = append(problems, fmt.Sprintf("param %q is needed and not given", spec.Name))
		}
	}
	return problems
}

func paramNamed(specs []pipelinev1.ParamSpec, name string) *pipelinev1.ParamSpec {
	for i := range specs {
		if specs[i].Name == name {
			return &specs[i]
		}
	}
	return nil
}

var (
	wholeParam  = regexp.MustCompile(`^\$\(params\.([^.\[)]+)\[\*\]\)$`)
	wholeResult = regexp.MustCompile(`^\$\(tasks\.([^.)]+)\.results\.([^.\[)]+)\[\*\]\)$`)
	plainParam  = regexp.MustCompile(`\$\(params\.([^.\[)]+)\)`)
	plainResult = regexp.MustCompile(`\$\(tasks\.([^.)]+)\.results\.([^.\[)]+)\)`)
)

// typeOf is the type that a value has once its references are replaced, or nothing when a reference
// leads nowhere, which is told elsewhere.
func typeOf(value pipelinev1.ParamValue, around []pipelinev1.ParamSpec, specs map[string]*pipelinev1.TaskSpec) pipelinev1.ParamType {
	if value.Type != pipelinev1.ParamTypeString {
		return value.Type
	}
	if match := wholeParam.FindStringSubmatch(value.StringVal); match != nil {
		if spec := paramNamed(around, match[1]); spec != nil {
			return spec.Type
		}
		return ""
	}
	if match := wholeResult.FindStringSubmatch(value.StringVal); match != nil {
		if result := resultNamed(specs[match[1]], match[2]); result != nil {
			return pipelinev1.ParamType(result.Type)
		}
		return ""
	}
	// An array or an object inside of a text would be spelled out by nobody.
	for _, match := range plainParam.FindAllStringSubmatch(value.StringVal, -1) {
		if spec := paramNamed(around, match[1]); spec != nil && spec.Type != pipelinev1.ParamTypeString {
			return spec.Type
		}
	}
	for _, match := range plainResult.FindAllStringSubmatch(value.StringVal, -1) {
		if result := resultNamed(specs[match[1]], match[2]); result != nil && result.Type != pipelinev1.ResultsTypeString {
			return pipelinev1.ParamType(result.Type)
		}
	}
	return pipelinev1.ParamTypeString
}

func resultNamed(spec *pipelinev1.TaskSpec, name string) *pipelinev1.TaskResult {
	if spec == nil {
		return nil
	}
	for i := range spec.Results {
		if spec.Results[i].Name == name {
			return &spec.Results[i]
		}
	}
	return nil
}

func resultReference(ref *pipelinev1.ResultRef, specs map[string]*pipelinev1.TaskSpec) string {
	spec, ok := specs[ref.PipelineTask]
	if !ok {
		return fmt.Sprintf("uses a result of %q, which is no task of the pipeline", ref.PipelineTask)
	}
	result := resultNamed(spec, ref.Result)
	if result == nil {
		return fmt.Sprintf("uses the result %q, which %q does not have", ref.Result, ref.PipelineTask)
	}
	wanted := result.Type
	switch {
	case ref.ResultsIndex != nil:
		wanted = pipelinev1.ResultsTypeArray
	case ref.Property != "":
		wanted = pipelinev1.ResultsTypeObject
	}
	if wanted != result.Type {
		return fmt.Sprintf("uses the result %q of %q as %s; it is %s", ref.Result, ref.PipelineTask, wanted, result.Type)
	}
	return ""
}

func boundWorkspaces(bound []pipelinev1.WorkspacePipelineTaskBinding, declared []pipelinev1.WorkspaceDeclaration, around []pipelinev1.PipelineWorkspaceDeclaration) []string {
	var problems []string
	isBound := map[string]bool{}
	for _, binding := range bound {
		isBound[binding.Name] = true
		at := slices.IndexFunc(declared, func(workspace pipelinev1.WorkspaceDeclaration) bool { return workspace.Name == binding.Name })
		if at < 0 {
			problems = append(problems, fmt.Sprintf("workspace %q is not declared", binding.Name))
			continue
		}
		from := binding.Workspace
		if from == "" {
			from = binding.Name
		}
		of := slices.IndexFunc(around, func(workspace pipelinev1.PipelineWorkspaceDeclaration) bool { return workspace.Name == from })
		if of < 0 {
			problems = append(problems, fmt.Sprintf("workspace %q of the pipeline is not declared", from))
			continue
		}
		if around[of].Optional && !declared[at].Optional {
			problems = append(problems, fmt.Sprintf("workspace %q is needed, and that of the pipeline is optional", binding.Name))
		}
	}
	for _, workspace := range declared {
		if !workspace.Optional && !isBound[workspace.Name] {
			problems = append(problems, fmt.Sprintf("workspace %q is needed and not bound", workspace.Name))
		}
	}
	return problems
}

func runReferences(set *Set, manifest Manifest, run *pipelinev1.PipelineRun) []Problem {
	var problems []Problem
	tell := func(format string, values ...any) {
		problems = append(problems, Problem{manifest.File, manifest.Place(), fmt.Sprintf(format, values...)})
	}
	if run.Spec.PipelineRef == nil {
		tell("has no pipelineRef")
		return problems
	}
	pipeline, ok := Named[*pipelinev1.Pipeline](set, run.Spec.PipelineRef.Name)
	if !ok {
		tell("there is no pipeline %q", run.Spec.PipelineRef.Name)
		return problems
	}
	for _, text := range givenParams(run.Spec.Params, pipeline.Spec.Params, nil, nil) {
		tell("%s", text)
	}
	for _, spec := range run.Spec.TaskRunSpecs {
		isTask := func(task pipelinev1.PipelineTask) bool { return task.Name == spec.PipelineTaskName }
		if !slices.ContainsFunc(slices.Concat(pipeline.Spec.Tasks, pipeline.Spec.Finally), isTask) {
			tell("taskRunSpecs: %q is no task of the pipeline", spec.PipelineTaskName)
		}
	}
	bound := map[string]pipelinev1.WorkspaceBinding{}
	for _, binding := range run.Spec.Workspaces {
		bound[binding.Name] = binding
		isDeclared := func(workspace pipelinev1.PipelineWorkspaceDeclaration) bool { return workspace.Name == binding.Name }
		if !slices.ContainsFunc(pipeline.Spec.Workspaces, isDeclared) {
			tell("workspace %q is not declared", binding.Name)
		}
	}
	for _, workspace := range pipeline.Spec.Workspaces {
		if _, ok := bound[workspace.Name]; !ok && !workspace.Optional {
			tell("workspace %q is needed and not bound", workspace.Name)
		}
	}
	for _, text := range volumesOfTasks(pipeline, bound) {
		tell("%s", text)
	}
	return problems
}

// volumesOfTasks tells volumes that a task cannot have under Tekton's affinity assistant, and an
// emptyDir that two tasks take for one folder.
func volumesOfTasks(pipeline *pipelinev1.Pipeline, bound map[string]pipelinev1.WorkspaceBinding) []string {
	var problems []string
	users := map[string][]string{}
	for _, task := range slices.Concat(pipeline.Spec.Tasks, pipeline.Spec.Finally) {
		claims := map[string]bool{}
		for _, workspace := range task.Workspaces {
			name := workspace.Workspace
			if name == "" {
				name = workspace.Name
			}
			binding := bound[name]
			switch {
			case binding.VolumeClaimTemplate != nil:
				claims["template of "+name] = true
			case binding.PersistentVolumeClaim != nil:
				claims[binding.PersistentVolumeClaim.ClaimName] = true
			case binding.EmptyDir != nil:
				users[name] = append(users[name], task.Name)
			}
		}
		if len(claims) > 1 {
			problems = append(problems, fmt.Sprintf("%s would have %d volume claims: a task can have one", task.Name, len(claims)))
		}
	}
	for _, name := range sortedKeys(users) {
		if len(users[name]) > 1 {
			problems = append(problems, fmt.Sprintf("workspace %q is an emptyDir, which %s would not share", name, strings.Join(users[name], ", ")))
		}
	}
	return problems
}

func sortedKeys[V any](of map[string]V) []string {
	keys := make([]string, 0, len(of))
	for key := range of {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// kustomizationReferences tells files that are named and not there, and files beside a
// kustomization.yaml that it does not name: they would never be applied.
func kustomizationReferences(set *Set) []Problem {
	files := map[string]bool{}
	lists := map[string]bool{}
	folders := map[string]bool{}
	for _, manifest := range set.Manifests {
		files[manifest.File] = true
	}
	for _, list := range set.Replacements {
		lists[list] = true
	}
	for _, kustomization := range set.Kustomizations {
		folders[filepath.Dir(kustomization.File)] = true
	}
	var problems []Problem
	for _, kustomization := range set.Kustomizations {
		folder := filepath.Dir(kustomization.File)
		named := map[string]bool{}
		for _, replacement := range kustomization.Replacements {
			path := filepath.Join(folder, replacement)
			named[path] = true
			if !lists[path] {
				problems = append(problems, Problem{kustomization.File, "", fmt.Sprintf("%q is no list of replacements", replacement)})
			}
		}
		for _, resource := range kustomization.Resources {
			path := filepath.Join(folder, resource)
			named[path] = true
			if !files[path] && !folders[path] && !isKustomization(filepath.Join(set.root, path)) {
				problems = append(problems, Problem{kustomization.File, "", fmt.Sprintf("resource %q is not there", resource)})
			}
		}
		for _, file := range append(sortedKeys(files), sortedKeys(lists)...) {
			if filepath.Dir(file) == folder && !named[file] {
				problems = append(problems, Problem{kustomization.File, "", fmt.Sprintf("%q is not among the resources", filepath.Base(file))})
			}
		}
	}
	return problems
}

// isKustomization is true of a folder that kustomize can take, also one that is not judged here.
func isKustomization(folder string) bool {
	_, err := os.Stat(filepath.Join(folder, "kustomization.yaml"))
	return err == nil
}
