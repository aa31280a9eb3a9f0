package tekton

import (
	"fmt"
	"path/filepath"
	"strings"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	"github.com/tektoncd/pipeline/pkg/container"
)

// Place is where a task runs on this machine: what the paths of its pod are here.
type Place struct {
	Params map[string]string
	// Workspaces are the folders of the bound ones.
	Workspaces map[string]string
	// Results is /tekton/results.
	Results string
	// Volumes are the folders of a pod's other volumes, by the path of their mount.
	Volumes map[string]string
}

// Process is a step as a container runtime would start it.
type Process struct {
	Name       string
	WorkingDir string
	Words      []string
	Script     string
	Env        []string
}

// Processes are a task's steps with all replaced that Tekton and the kubelet replace, in their order:
// Tekton each kind of reference in a pass of its own, parameters first, so that a parameter's value may
// name a workspace; the kubelet env from the env before it, and words from all of it.
func Processes(task *pipelinev1.Task, place Place) ([]Process, error) {
	spec := task.DeepCopy().Spec
	for i := range spec.Steps {
		place.moveTo(&spec.Steps[i])
	}
	strings, arrays := place.parameters(spec.Params)
	replace(&spec, strings, arrays)
	replace(&spec, map[string]string{
		"context.taskRun.name":      task.Name + "-run",
		"context.task.name":         task.Name,
		"context.taskRun.namespace": "runs",
		"context.taskRun.uid":       "0f0f0f0f-0000-4000-8000-000000000000",
		"context.task.retry-count":  "0",
	}, nil)
	replace(&spec, place.results(spec.Results), nil)
	replace(&spec, place.workspaces(spec.Workspaces), nil)
	steps, err := pipelinev1.MergeStepsWithStepTemplate(spec.StepTemplate, spec.Steps)
	if err != nil {
		return nil, err
	}
	processes := make([]Process, 0, len(steps))
	for _, step := range steps {
		processes = append(processes, started(step))
	}
	return processes, nil
}

// replace is one of Tekton's passes over a task.
func replace(spec *pipelinev1.TaskSpec, strings map[string]string, arrays map[string][]string) {
	for i := range spec.Steps {
		container.ApplyStepReplacements(&spec.Steps[i], strings, arrays)
	}
	if spec.StepTemplate != nil {
		container.ApplyStepTemplateReplacements(spec.StepTemplate, strings, arrays)
	}
}

// moveTo turns paths that a step writes out into those of this machine, before any value is there.
func (place Place) moveTo(step *pipelinev1.Step) {
	move := func(text string) string {
		for mount, folder := range place.Volumes {
			if text == mount || strings.HasPrefix(text, mount+"/") {
				return folder + strings.TrimPrefix(text, mount)
			}
		}
		return text
	}
	step.WorkingDir = move(step.WorkingDir)
	for i, word := range step.Command {
		step.Command[i] = move(word)
	}
	for i, word := range step.Args {
		step.Args[i] = move(word)
	}
	for i, env := range step.Env {
		step.Env[i].Value = move(env.Value)
	}
}

// A reference to a parameter can be written in three ways.
var parameterPatterns = []string{"params.%s", "params[%q]", "params['%s']"}

func (place Place) parameters(specs []pipelinev1.ParamSpec) (map[string]string, map[string][]string) {
	texts, arrays := map[string]string{}, map[string][]string{}
	for _, spec := range specs {
		for _, pattern := range parameterPatterns {
			key := fmt.Sprintf(pattern, spec.Name)
			if given, ok := place.Params[spec.Name]; ok {
				texts[key] = given
				continue
			}
			if spec.Default == nil {
				continue
			}
			texts[key] = spec.Default.StringVal
			if spec.Default.Type == pipelinev1.ParamTypeArray {
				arrays[key] = spec.Default.ArrayVal
			}
		}
	}
	return texts, arrays
}

func (place Place) results(specs []pipelinev1.TaskResult) map[string]string {
	paths := map[string]string{}
	for _, spec := range specs {
		for _, pattern := range []string{"results.%s.path", "results[%q].path", "results['%s'].path"} {
			paths[fmt.Sprintf(pattern, spec.Name)] = filepath.Join(place.Results, spec.Name)
		}
	}
	return paths
}

// workspaces: an optional one that is not bound has the empty path.
func (place Place) workspaces(declared []pipelinev1.WorkspaceDeclaration) map[string]string {
	texts := map[string]string{}
	for _, workspace := range declared {
		folder := place.Workspaces[workspace.Name]
		texts["workspaces."+workspace.Name+".path"] = folder
		texts["workspaces."+workspace.Name+".bound"] = fmt.Sprint(folder != "")
	}
	return texts
}

// started is what the kubelet makes of a step.
func started(step pipelinev1.Step) Process {
	process := Process{Name: step.Name, WorkingDir: step.WorkingDir, Script: step.Script}
	values := map[string]string{}
	for _, env := range step.Env {
		values[env.Name] = Expand(env.Value, values)
	}
	for _, name := range sortedKeys(values) {
		process.Env = append(process.Env, name+"="+values[name])
	}
	for _, word := range append(step.Command, step.Args...) {
		process.Words = append(process.Words, Expand(word, values))
	}
	return process
}

// Expand replaces $(NAME) as the kubelet does: by the value of a known name, else not at all; $$ is a
// dollar, so that $$(NAME) stays.
func Expand(text string, values map[string]string) string {
	var expanded strings.Builder
	for at := 0; at < len(text); at++ {
		if text[at] != '$' || at+1 == len(text) {
			expanded.WriteByte(text[at])
			continue
		}
		switch text[at+1] {
		case '$':
			expanded.WriteByte('$')
			at++
		case '(':
			length := strings.IndexByte(text[at+2:], ')')
			if length < 0 {
				expanded.WriteByte('$')
				continue
			}
			reference := text[at : at+2+length+1]
			if value, ok := values[text[at+2:at+2+length]]; ok {
				expanded.WriteString(value)
			} else {
				expanded.WriteString(reference)
			}
			at += len(reference) - 1
		default:
			expanded.WriteByte('$')
		}
	}
	return expanded.String()
}
