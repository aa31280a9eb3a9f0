package tekton

import (
	"os"
	"path/filepath"
	"testing"
)

// root is the project's folder.
const root = "../.."

// folders are those with manifests.
func folders(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, folder := range []string{"tasks", "pipelines", "config/install"} {
		if _, err := os.Stat(filepath.Join(root, folder)); err == nil {
			found = append(found, folder)
		}
	}
	return found
}

func TestTheProjectsManifestsHaveNoProblem(t *testing.T) {
	set, problems, err := Judge(root, folders(t)...)
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Error(problem)
	}
	if len(set.Manifests) == 0 {
		t.Error("there are no manifests")
	}
}
