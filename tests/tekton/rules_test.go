package tekton

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const good = "testdata/good"

func TestManifestsThatKeepToEveryRuleHaveNoProblem(t *testing.T) {
	_, problems, err := Judge(good, ".")
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range problems {
		t.Error(problem)
	}
}

// fault is one change that makes good manifests bad, and all that is to be said about it then.
type fault struct {
	name string
	file string
	old  string
	new  string
	told []string
}

// A change of the rules that lets one of these pass, or that tells more than it should, fails.
func TestEveryFaultIsToldWithItsPlace(t *testing.T) {
	for _, faults := range [][]fault{readingFaults, referenceFaults, stepFaults, pipelineFaults, runFaults, rightsFaults} {
		for _, fault := range faults {
			t.Run(fault.name, func(t *testing.T) {
				judgeFault(t, fault)
			})
		}
	}
}

func judgeFault(t *testing.T, fault fault) {
	folder := t.TempDir()
	if err := os.CopyFS(folder, os.DirFS(good)); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, fault.file)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if count := strings.Count(string(text), fault.old); count != 1 {
		t.Fatalf("%q is %d times in %s", fault.old, count, fault.file)
	}
	changed := strings.Replace(string(text), fault.old, fault.new, 1)
	if err := os.WriteFile(path, []byte(changed), 0o600); err != nil {
		t.Fatal(err)
	}
	_, problems, err := Judge(folder, ".")
	if err != nil {
		t.Fatal(err)
	}
	var told []string
	for _, problem := range problems {
		told = append(told, problem.String())
	}
	if len(told) == 0 || len(told) != len(fault.told) {
		t.Fatalf("told %d problems, %d are wanted:\n%s", len(told), len(fault.told), strings.Join(told, "\n"))
	}
	for at, wanted := range fault.told {
		if !strings.Contains(told[at], wanted) {
			t.Errorf("told %s\nwanted %s", told[at], wanted)
		}
	}
}
