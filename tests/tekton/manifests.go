// Package tekton judges the project's manifests as a cluster would, and runs the steps of its tasks
// as a kubelet would, both without a cluster.
//
// What is loaded is read strictly, with the defaults and the validation of Tekton's own webhook
// (manifests.go). The rest is about what no webhook sees: references between manifests
// (references.go), rules that the project has set itself (rules_*.go), and the way of a parameter's
// value into a process (step.go).
package tekton

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	pipelinev1 "github.com/tektoncd/pipeline/pkg/apis/pipeline/v1"
	triggercontexts "github.com/tektoncd/triggers/pkg/apis/triggers/contexts"
	triggersv1 "github.com/tektoncd/triggers/pkg/apis/triggers/v1beta1"
	yaml3 "go.yaml.in/yaml/v3"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	yamlstream "k8s.io/apimachinery/pkg/util/yaml"
	"knative.dev/pkg/apis"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

// Problem is one thing that is wrong with a manifest, and where.
type Problem struct {
	File  string
	Place string
	Text  string
}

func (p Problem) String() string {
	if p.Place == "" {
		return fmt.Sprintf("%s: %s", p.File, p.Text)
	}
	return fmt.Sprintf("%s: %s: %s", p.File, p.Place, p.Text)
}

// Manifest is one object of a file. Its Object is of the type that its kind names.
type Manifest struct {
	File   string
	Object metav1.Object
	Kind   string
}

// Place names the object for a person: `Task deploy-intercept-mirrord`.
func (m Manifest) Place(path ...string) string {
	name := m.Object.GetName()
	if name == "" {
		name = m.Object.GetGenerateName() + "..."
	}
	return strings.Join(append([]string{m.Kind + " " + name}, path...), ": ")
}

// Kustomization is one kustomization.yaml, as far as this module looks at it.
type Kustomization struct {
	File      string
	Resources []string
	// Files with lists of replacements.
	Replacements []string
}

// Set is all manifests that are applied together.
type Set struct {
	Manifests      []Manifest
	Kustomizations []Kustomization
	// Files with kustomize's lists of replacements, and no object.
	Replacements []string
	root         string
}

// Each calls visit with every object of type T.
func Each[T metav1.Object](set *Set, visit func(Manifest, T)) {
	for _, manifest := range set.Manifests {
		if object, ok := manifest.Object.(T); ok {
			visit(manifest, object)
		}
	}
}

// Named is the object of type T with this name, or nothing.
func Named[T metav1.Object](set *Set, name string) (T, bool) {
	var found T
	var ok bool
	Each(set, func(_ Manifest, object T) {
		if !ok && object.GetName() == name {
			found, ok = object, true
		}
	})
	return found, ok
}

// kinds makes an empty object of each kind that is known. A manifest of another kind is a problem: it
// would be read by nothing here.
var kinds = map[string]func() metav1.Object{
	"tekton.dev/v1 Task":                              func() metav1.Object { return new(pipelinev1.Task) },
	"tekton.dev/v1 TaskRun":                           func() metav1.Object { return new(pipelinev1.TaskRun) },
	"tekton.dev/v1 Pipeline":                          func() metav1.Object { return new(pipelinev1.Pipeline) },
	"tekton.dev/v1 PipelineRun":                       func() metav1.Object { return new(pipelinev1.PipelineRun) },
	"triggers.tekton.dev/v1beta1 TriggerBinding":      func() metav1.Object { return new(triggersv1.TriggerBinding) },
	"triggers.tekton.dev/v1beta1 TriggerTemplate":     func() metav1.Object { return new(triggersv1.TriggerTemplate) },
	"triggers.tekton.dev/v1beta1 EventListener":       func() metav1.Object { return new(triggersv1.EventListener) },
	"v1 Namespace":                                    func() metav1.Object { return new(corev1.Namespace) },
	"v1 ServiceAccount":                               func() metav1.Object { return new(corev1.ServiceAccount) },
	"v1 ConfigMap":                                    func() metav1.Object { return new(corev1.ConfigMap) },
	"v1 Secret":                                       func() metav1.Object { return new(corev1.Secret) },
	"v1 Service":                                      func() metav1.Object { return new(corev1.Service) },
	"v1 Pod":                                          func() metav1.Object { return new(corev1.Pod) },
	"v1 PersistentVolumeClaim":                        func() metav1.Object { return new(corev1.PersistentVolumeClaim) },
	"v1 LimitRange":                                   func() metav1.Object { return new(corev1.LimitRange) },
	"v1 ResourceQuota":                                func() metav1.Object { return new(corev1.ResourceQuota) },
	"apps/v1 Deployment":                              func() metav1.Object { return new(appsv1.Deployment) },
	"apps/v1 DaemonSet":                               func() metav1.Object { return new(appsv1.DaemonSet) },
	"apps/v1 StatefulSet":                             func() metav1.Object { return new(appsv1.StatefulSet) },
	"batch/v1 CronJob":                                func() metav1.Object { return new(batchv1.CronJob) },
	"batch/v1 Job":                                    func() metav1.Object { return new(batchv1.Job) },
	"networking.k8s.io/v1 NetworkPolicy":              func() metav1.Object { return new(networkingv1.NetworkPolicy) },
	"policy/v1 PodDisruptionBudget":                   func() metav1.Object { return new(policyv1.PodDisruptionBudget) },
	"rbac.authorization.k8s.io/v1 Role":               func() metav1.Object { return new(rbacv1.Role) },
	"rbac.authorization.k8s.io/v1 RoleBinding":        func() metav1.Object { return new(rbacv1.RoleBinding) },
	"rbac.authorization.k8s.io/v1 ClusterRole":        func() metav1.Object { return new(rbacv1.ClusterRole) },
	"rbac.authorization.k8s.io/v1 ClusterRoleBinding": func() metav1.Object { return new(rbacv1.ClusterRoleBinding) },
}

// Load reads every YAML file below the folders, each told relative to root.
func Load(root string, folders ...string) (*Set, []Problem, error) {
	set := &Set{root: root}
	var problems []Problem
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join(root, folder), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !isYAML(path) {
				return err
			}
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			name, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			problems = append(problems, set.read(name, text)...)
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	problems = append(problems, duplicates(set)...)
	return set, problems, nil
}

func isYAML(path string) bool {
	extension := filepath.Ext(path)
	return extension == ".yaml" || extension == ".yml"
}

// duplicates tells objects that are there twice: the one applied last would win.
func duplicates(set *Set) []Problem {
	var problems []Problem
	seen := map[string]string{}
	for _, manifest := range set.Manifests {
		name := manifest.Object.GetName()
		if name == "" {
			continue
		}
		key := manifest.Kind + " " + manifest.Object.GetNamespace() + "/" + name
		if first, ok := seen[key]; ok {
			problems = append(problems, Problem{manifest.File, manifest.Place(), "is in " + first + " too"})
		}
		seen[key] = manifest.File
	}
	return problems
}

// read takes one file's documents into the set, and tells what is wrong with each.
func (set *Set) read(file string, text []byte) []Problem {
	problems := traps(file, text)
	reader := yamlstream.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for number := 1; ; number++ {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return problems
		}
		if err != nil {
			return append(problems, Problem{file, "", err.Error()})
		}
		asJSON, err := yaml.YAMLToJSONStrict(document)
		if err != nil {
			problems = append(problems, Problem{file, fmt.Sprintf("document %d", number), err.Error()})
			continue
		}
		if string(asJSON) == "null" {
			continue
		}
		if filepath.Base(file) == "kustomization.yaml" {
			problems = append(problems, set.readKustomization(file, asJSON)...)
			continue
		}
		// No object is a list; kustomize's replacements are.
		if asJSON[0] == '[' {
			set.Replacements = append(set.Replacements, file)
			continue
		}
		problems = append(problems, set.readObject(file, asJSON)...)
	}
}

func (set *Set) readKustomization(file string, asJSON []byte) []Problem {
	kustomization := Kustomization{File: file}
	var read struct {
		Resources    []string `json:"resources"`
		Components   []string `json:"components"`
		Replacements []struct {
			Path string `json:"path"`
		} `json:"replacements"`
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(asJSON, &read); err != nil {
		return []Problem{{file, "", err.Error()}}
	}
	kustomization.Resources = append(read.Resources, read.Components...)
	for _, replacement := range read.Replacements {
		kustomization.Replacements = append(kustomization.Replacements, replacement.Path)
	}
	set.Kustomizations = append(set.Kustomizations, kustomization)
	return nil
}

func (set *Set) readObject(file string, asJSON []byte) []Problem {
	manifest, problems := Decode(file, asJSON)
	if manifest != nil {
		set.Manifests = append(set.Manifests, *manifest)
	}
	return problems
}

// Decode reads one object as an API server with strict field validation does, gives it the defaults
// of its kind, and validates it as the webhook does at its creation.
func Decode(file string, asJSON []byte) (*Manifest, []Problem) {
	var meta metav1.TypeMeta
	if err := kjson.UnmarshalCaseSensitivePreserveInts(asJSON, &meta); err != nil {
		return nil, []Problem{{file, "", err.Error()}}
	}
	kind := strings.TrimSpace(meta.APIVersion + " " + meta.Kind)
	empty, known := kinds[kind]
	if !known {
		return nil, []Problem{{file, "", fmt.Sprintf("unknown kind %q", kind)}}
	}
	manifest := Manifest{File: file, Object: empty(), Kind: meta.Kind}
	strict, err := kjson.UnmarshalStrict(asJSON, manifest.Object)
	if err != nil {
		return nil, []Problem{{file, kind, err.Error()}}
	}
	var problems []Problem
	for _, err := range strict {
		problems = append(problems, Problem{file, manifest.Place(), err.Error()})
	}
	return &manifest, append(problems, admit(manifest)...)
}

// admit is what the webhook does with an object that is created.
func admit(manifest Manifest) []Problem {
	ctx := triggercontexts.WithUpgradeViaDefaulting(apis.WithinCreate(context.Background()))
	// The API server has made a name by now.
	if object := manifest.Object; object.GetName() == "" && object.GetGenerateName() != "" {
		object.SetName(object.GetGenerateName() + "abcde")
		defer object.SetName("")
	}
	if object, ok := manifest.Object.(apis.Defaultable); ok {
		object.SetDefaults(ctx)
	}
	if object, ok := manifest.Object.(apis.Validatable); ok {
		if err := object.Validate(ctx); err != nil {
			return []Problem{{manifest.File, manifest.Place(), err.Error()}}
		}
	}
	return nil
}

// YAML 1.1, which Kubernetes reads, takes these words for booleans.
var booleans = map[string]bool{
	"y": true, "Y": true, "yes": true, "Yes": true, "YES": true, "on": true, "On": true, "ON": true,
	"n": true, "N": true, "no": true, "No": true, "NO": true, "off": true, "Off": true, "OFF": true,
}

// traps tells words without quotes that mean a boolean to a cluster and a word to whoever wrote them.
func traps(file string, text []byte) []Problem {
	var problems []Problem
	decoder := yaml3.NewDecoder(bufio.NewReader(bytes.NewReader(text)))
	for {
		var node yaml3.Node
		err := decoder.Decode(&node)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return append(problems, Problem{file, "", err.Error()})
		}
		walk(&node, func(node *yaml3.Node) {
			if node.Kind == yaml3.ScalarNode && node.Style == 0 && booleans[node.Value] {
				text := fmt.Sprintf("%s without quotes is a boolean; write %q, or true or false", node.Value, node.Value)
				problems = append(problems, Problem{file, fmt.Sprintf("line %d", node.Line), text})
			}
		})
	}
	return problems
}

func walk(node *yaml3.Node, visit func(*yaml3.Node)) {
	visit(node)
	for _, child := range node.Content {
		walk(child, visit)
	}
}

func sorted(problems []Problem) []Problem {
	sort.SliceStable(problems, func(i, j int) bool { return problems[i].String() < problems[j].String() })
	return problems
}
