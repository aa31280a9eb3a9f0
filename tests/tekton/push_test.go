package tekton

import (
	"testing"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

// /tmp is HOME. What a pull request's build leaves there must not configure the step that has the registry's
// credentials, and Tekton must take the step's own folder for the one of the template.
func TestPushSharesNoHomeWithTheBuild(t *testing.T) {
	set, _, err := Judge(root, folders(t)...)
	if err != nil {
		t.Fatal(err)
	}
	homes := map[string][]string{}
	Each(set, func(_ Manifest, task *pipelinev1.Task) {
		if task.Name != "build-image" {
			return
		}
		steps, err := pipelinev1.MergeStepsWithStepTemplate(task.Spec.StepTemplate, task.Spec.Steps)
		if err != nil {
			t.Fatal(err)
		}
		for _, step := range steps {
			for _, mount := range step.VolumeMounts {
				if mount.MountPath == "/tmp" {
					homes[step.Name] = append(homes[step.Name], mount.Name)
				}
			}
		}
	})
	build, push := homes["build"], homes["push"]
	if len(build) != 1 || len(push) != 1 || build[0] == push[0] {
		t.Errorf("/tmp of build is %v, of push %v: each wants one of its own", build, push)
	}
}
