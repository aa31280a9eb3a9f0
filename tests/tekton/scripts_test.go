package tekton

import (
	"os/exec"
	"strings"
	"testing"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
)

func TestScriptsPassShellcheck(t *testing.T) {
	set, _, err := Judge(root, folders(t)...)
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	Each(set, func(manifest Manifest, task *pipelinev1.Task) {
		for _, step := range task.Spec.Steps {
			if step.Script == "" {
				continue
			}
			checked++
			command := exec.Command("shellcheck", "-")
			command.Stdin = strings.NewReader(step.Script)
			if said, err := command.CombinedOutput(); err != nil {
				t.Errorf("%s: step %s: %v\n%s", manifest.File, step.Name, err, said)
			}
		}
	})
	if checked == 0 {
		t.Error("no step has a script: this test has nothing to do any more")
	}
}
