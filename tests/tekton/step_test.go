package tekton

import (
	"testing"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	corev1 "k8s.io/api/core/v1"
)

func TestExpandsWhatTheKubeletExpands(t *testing.T) {
	values := map[string]string{"A": "a", "B": "$(A)", "": "nothing"}
	for text, wanted := range map[string]string{
		"":               "",
		"plain":          "plain",
		"$(A)":           "a",
		"<$(A)$(A)>":     "<aa>",
		"$(B)":           "$(A)",
		"$(C)":           "$(C)",
		"$$(A)":          "$(A)",
		"$$$(A)":         "$a",
		"$$$$(A)":        "$$(A)",
		"$A ${A} $":      "$A ${A} $",
		"$(A":            "$(A",
		"$(A $(A)":       "$(A $(A)",
		"$($(A))":        "$($(A))",
		"$()":            "nothing",
		"price: 5$":      "price: 5$",
		"`id` $(id)":     "`id` $(id)",
		"ünï$(A)cödé☃$$": "ünïacödé☃$",
	} {
		if got := Expand(text, values); got != wanted {
			t.Errorf("%q is %q, wanted %q", text, got, wanted)
		}
	}
}

func TestReplacesInTektonsOrderAndThenInTheKubelets(t *testing.T) {
	task := &pipelinev1.Task{Spec: pipelinev1.TaskSpec{
		Params: []pipelinev1.ParamSpec{
			{Name: "given"},
			{Name: "usual", Default: pipelinev1.NewStructuredValues("by default")},
		},
		Workspaces: []pipelinev1.WorkspaceDeclaration{{Name: "bound"}, {Name: "unbound", Optional: true}},
		Results:    []pipelinev1.TaskResult{{Name: "out"}},
		StepTemplate: &pipelinev1.StepTemplate{
			Env: []corev1.EnvVar{{Name: "OF_ALL", Value: "of all"}},
		},
		Steps: []pipelinev1.Step{{
			Name:       "only",
			WorkingDir: "$(workspaces.bound.path)",
			Command:    []string{"$(OF_ALL)", "$(workspaces.unbound.path)"},
			Args:       []string{"$(results.out.path)", "/work/file"},
			Env: []corev1.EnvVar{
				{Name: "GIVEN", Value: `$(params.given)$(params["usual"])`},
				{Name: "LATER", Value: "$(GIVEN)"},
			},
		}},
	}}
	place := Place{
		// A parameter's value is not read again for parameters, but is for what Tekton replaces later.
		Params:     map[string]string{"given": "$(params.usual) $(workspaces.bound.path) $(LATER) "},
		Workspaces: map[string]string{"bound": "/bound"},
		Results:    "/results",
		Volumes:    map[string]string{"/work": "/moved"},
	}

	processes, err := Processes(task, place)
	if err != nil {
		t.Fatal(err)
	}

	process := processes[0]
	given := "$(params.usual) /bound $(LATER) by default"
	wanted := []string{"GIVEN=" + given, "LATER=" + given, "OF_ALL=of all"}
	words := []string{"of all", "", "/results/out", "/moved/file"}
	if len(processes) != 1 || process.WorkingDir != "/bound" || !equal(process.Env, wanted) || !equal(process.Words, words) {
		t.Errorf("got %#v", processes)
	}
}

func equal(got, wanted []string) bool {
	if len(got) != len(wanted) {
		return false
	}
	for at := range got {
		if got[at] != wanted[at] {
			return false
		}
	}
	return true
}
