package tekton

import (
	"fmt"
	"regexp"
	"slices"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	triggersv1 "github.com/tektoncd/triggers/pkg/apis/triggers/v1beta1"
)

var templateParam = regexp.MustCompile(`\$\(tt\.params\.([^)]+)\)`)

// triggerReferences follows a webhook's way: listener, bindings, template, pipeline run.
func triggerReferences(set *Set) []Problem {
	var problems []Problem
	Each(set, func(manifest Manifest, listener *triggersv1.EventListener) {
		for _, trigger := range listener.Spec.Triggers {
			for _, text := range triggerReference(set, trigger) {
				problems = append(problems, Problem{manifest.File, manifest.Place(trigger.Name), text})
			}
		}
	})
	Each(set, func(manifest Manifest, template *triggersv1.TriggerTemplate) {
		problems = append(problems, templateReferences(set, manifest, template)...)
	})
	return problems
}

func triggerReference(set *Set, trigger triggersv1.EventListenerTrigger) []string {
	var problems []string
	given := map[string]bool{}
	for _, used := range trigger.Bindings {
		if used.Ref == "" {
			given[used.Name] = true
			continue
		}
		binding, ok := Named[*triggersv1.TriggerBinding](set, used.Ref)
		if !ok {
			problems = append(problems, fmt.Sprintf("there is no binding %q", used.Ref))
			continue
		}
		for _, param := range binding.Spec.Params {
			given[param.Name] = true
		}
	}
	if trigger.Template == nil || trigger.Template.Ref == nil {
		return append(problems, "has no template")
	}
	template, ok := Named[*triggersv1.TriggerTemplate](set, *trigger.Template.Ref)
	if !ok {
		return append(problems, fmt.Sprintf("there is no template %q", *trigger.Template.Ref))
	}
	for _, param := range template.Spec.Params {
		if param.Default == nil && !given[param.Name] {
			problems = append(problems, fmt.Sprintf("template param %q is needed and not bound", param.Name))
		}
	}
	for _, name := range sortedKeys(given) {
		isParam := func(param triggersv1.ParamSpec) bool { return param.Name == name }
		if !slices.ContainsFunc(template.Spec.Params, isParam) {
			problems = append(problems, fmt.Sprintf("binding param %q is none of the template's", name))
		}
	}
	return problems
}

// templateReferences judges the run of a template as it would be created: with the defaults of the
// template's parameters, and a word for those without one.
func templateReferences(set *Set, manifest Manifest, template *triggersv1.TriggerTemplate) []Problem {
	var problems []Problem
	for _, created := range Created(template) {
		run, found := Decode(manifest.File, created)
		problems = append(problems, found...)
		if run == nil {
			continue
		}
		if pipelineRun, ok := run.Object.(*pipelinev1.PipelineRun); ok {
			problems = append(problems, runReferences(set, *run, pipelineRun)...)
			problems = append(problems, runRules(set, *run, pipelineRun)...)
		}
	}
	for _, param := range template.Spec.Params {
		used := false
		for _, resource := range template.Spec.ResourceTemplates {
			for _, match := range templateParam.FindAllSubmatch(resource.Raw, -1) {
				used = used || string(match[1]) == param.Name
			}
		}
		if !used {
			problems = append(problems, Problem{manifest.File, manifest.Place(), fmt.Sprintf("param %q is not used", param.Name)})
		}
	}
	return problems
}

// Created is what a template's resources look like when a webhook has come.
func Created(template *triggersv1.TriggerTemplate) [][]byte {
	var resources [][]byte
	for _, resource := range template.Spec.ResourceTemplates {
		resources = append(resources, templateParam.ReplaceAllFunc(resource.Raw, func(match []byte) []byte {
			name := string(templateParam.FindSubmatch(match)[1])
			for _, param := range template.Spec.Params {
				if param.Name == name && param.Default != nil {
					return []byte(*param.Default)
				}
			}
			return []byte("given")
		}))
	}
	return resources
}
