package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Tekton beside the plane: its controller and its webhook as they are published, with the settings of
// a stock install. Nobody reaches a Service here, so that the webhook's is another name for loopback.

const tektonNamespace = "tekton-pipelines"

// Where its objects go, by kind.
var collections = map[string]string{
	"Namespace":                      "/api/v1/namespaces",
	"ConfigMap":                      "/api/v1/namespaces/" + tektonNamespace + "/configmaps",
	"Secret":                         "/api/v1/namespaces/" + tektonNamespace + "/secrets",
	"Service":                        "/api/v1/namespaces/" + tektonNamespace + "/services",
	"CustomResourceDefinition":       "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
	"ValidatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
	"MutatingWebhookConfiguration":   "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
}

type object = map[string]any

// bringTekton starts it from the folder in which it was built, unless it is there, and returns when
// its webhook checks what is written.
func (p *plane) bringTekton(ctx context.Context, folder string) error {
	if len(p.tekton) == 0 {
		ports, err := freePorts(5)
		if err != nil {
			return err
		}
		if err := p.applyTekton(folder, ports[0]); err != nil {
			return err
		}
		p.tekton = []*part{
			webhookPart(p.dir, folder, ports[0], ports[1], ports[2]),
			pipelinesPart(p.dir, folder, ports[3], ports[4]),
		}
	}
	for _, part := range p.tekton {
		if err := p.bring(ctx, part); err != nil {
			return err
		}
	}
	return p.waitForWebhook(ctx)
}

func webhookPart(dir, folder string, port, probes, profiling int) *part {
	part := tektonPart(dir, folder, "webhook", probes, profiling, "-disable-ha=true")
	part.environment = append(part.environment, fmt.Sprintf("WEBHOOK_PORT=%d", port),
		"CONFIG_LEADERELECTION_NAME=config-leader-election-webhook")
	return part
}

// The images that its pods have beside the steps'. The node of the tests knows them by these names.
func pipelinesPart(dir, folder string, probes, profiling int) *part {
	part := tektonPart(dir, folder, "controller", probes, profiling, "-disable-ha=true",
		"-entrypoint-image=tekton.example/entrypoint",
		"-nop-image=tekton.example/nop",
		"-sidecarlogresults-image=tekton.example/sidecarlogresults",
		"-workingdirinit-image=tekton.example/workingdirinit",
		"-shell-image=tekton.example/shell",
		"-shell-image-win=tekton.example/shell-win",
	)
	part.environment = append(part.environment,
		"CONFIG_LEADERELECTION_NAME=config-leader-election-controller")
	return part
}

func tektonPart(dir, folder, name string, probes, profiling int, arguments ...string) *part {
	arguments = append(arguments,
		"-kubeconfig="+filepath.Join(dir, "admin.kubeconfig"),
		// As for the controller manager.
		"-kube-api-qps=500",
		"-kube-api-burst=500",
	)
	part := newPart(dir, "tekton-"+name, fmt.Sprintf("http://127.0.0.1:%d/health", probes), arguments...)
	part.binary = filepath.Join(folder, name)
	part.environment = []string{
		"SYSTEM_NAMESPACE=" + tektonNamespace,
		fmt.Sprintf("PROBES_PORT=%d", probes),
		fmt.Sprintf("PROFILING_PORT=%d", profiling),
		"CONFIG_LOGGING_NAME=config-logging",
		"CONFIG_OBSERVABILITY_NAME=config-observability",
		"CONFIG_FEATURE_FLAGS_NAME=feature-flags",
		"METRICS_DOMAIN=tekton.dev/pipeline",
	}
	return part
}

// applyTekton stores what an install of Tekton brings: definitions, settings, webhooks.
func (p *plane) applyTekton(folder string, webhookPort int) error {
	patterns := []string{"100-namespace/*.yaml", "300-crds/*.yaml", "config-*.yaml", "500-webhooks.yaml"}
	for _, pattern := range patterns {
		files, err := filepath.Glob(filepath.Join(folder, "config", pattern))
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("no %s in %s/config: build it with tests/cluster/tekton/build", pattern, folder)
		}
		for _, file := range files {
			if err := p.applyFile(file, webhookPort); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return p.apply(object{
		"apiVersion": "v1",
		"kind":       "Service",
		"metadata":   object{"name": "tekton-pipelines-webhook", "namespace": tektonNamespace},
		"spec":       object{"type": "ExternalName", "externalName": "localhost"},
	})
}

func (p *plane) applyFile(file string, webhookPort int) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, document := range bytes.Split(text, []byte("\n---")) {
		var one object
		if err := yaml.Unmarshal(document, &one); err != nil {
			return err
		}
		if one == nil {
			continue
		}
		settle(one, webhookPort)
		if err := p.apply(one); err != nil {
			return err
		}
	}
	return nil
}

// settle changes what cannot be as published here: the webhook's port, and the port of metrics, which
// another Tekton on this machine would want too.
func settle(any any, webhookPort int) {
	switch value := any.(type) {
	case object:
		for key, inner := range value {
			switch inner := inner.(type) {
			case object:
				if key == "service" && inner["namespace"] == tektonNamespace {
					inner["port"] = webhookPort
				}
			case string:
				if key == "metrics-protocol" {
					value[key] = "none"
				}
			}
			settle(inner, webhookPort)
		}
	case []interface{}:
		for _, inner := range value {
			settle(inner, webhookPort)
		}
	}
}

// apply stores an object, whether it is there or not.
func (p *plane) apply(one object) error {
	kind, _ := one["kind"].(string)
	metadata, _ := one["metadata"].(object)
	collection, ok := collections[kind]
	if !ok {
		return fmt.Errorf("no place for a %s", kind)
	}
	path := fmt.Sprintf("%s/%v?fieldManager=tests&force=true", collection, metadata["name"])
	body, err := json.Marshal(one)
	if err != nil {
		return err
	}
	status, answer, err := p.ask(http.MethodPatch, path, "application/apply-patch+yaml", body)
	if err != nil {
		return err
	}
	if status >= 300 {
		return fmt.Errorf("%s %v: %d %s", kind, metadata["name"], status, answer)
	}
	return nil
}

// waitForWebhook returns when a Task that says nothing is refused by the webhook, and the older API
// version of it is converted.
func (p *plane) waitForWebhook(ctx context.Context) error {
	deadline := time.Now().Add(patience)
	for {
		why, err := p.webhookChecks()
		if err == nil && why == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("Tekton's webhook does not work after %v: %s %w", patience, why, err)
		}
		for _, part := range p.tekton {
			if !part.running() {
				return part.failure("ended before it worked")
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// webhookChecks says what is missing.
func (p *plane) webhookChecks() (string, error) {
	for _, name := range []string{
		collections["MutatingWebhookConfiguration"] + "/webhook.pipeline.tekton.dev",
		collections["ValidatingWebhookConfiguration"] + "/config.webhook.pipeline.tekton.dev",
		collections["CustomResourceDefinition"] + "/tasks.tekton.dev",
		collections["CustomResourceDefinition"] + "/pipelineruns.tekton.dev",
	} {
		status, answer, err := p.ask(http.MethodGet, name, "", nil)
		if err != nil || status != 200 || !strings.Contains(answer, `"caBundle":`) {
			return name + " has no authority", err
		}
	}
	const tasks = "/apis/tekton.dev/%s/namespaces/" + tektonNamespace + "/tasks"
	body := []byte(`{"apiVersion":"tekton.dev/v1","kind":"Task","metadata":{"name":"empty"},"spec":{}}`)
	_, answer, err := p.ask(http.MethodPost, fmt.Sprintf(tasks, "v1")+"?dryRun=All", "application/json", body)
	if err != nil || !strings.Contains(answer, "missing field(s): spec.steps") {
		return "an empty Task is not refused: " + answer, err
	}
	status, answer, err := p.ask(http.MethodGet, fmt.Sprintf(tasks, "v1beta1"), "", nil)
	if err != nil || status != 200 {
		return "no Tasks of v1beta1: " + answer, err
	}
	return "", nil
}

// ask puts a question to the API server.
func (p *plane) ask(method, path, contentType string, body []byte) (int, string, error) {
	request, err := http.NewRequest(method, p.address+path, bytes.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	if contentType != "" {
		request.Header.Set("Content-Type", contentType)
	}
	response, err := p.client.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	return response.StatusCode, string(answer), err
}
