//! Pipeline runs: a namespace for them, Tekton that controls them, and a machine that runs their steps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::{
    ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::kubelet::{Image, Kubelet, Machine, Steps};
use super::namespace::Namespace;
use super::stage::deployer;

/// How long a run may take. Every step waits for the one before it, and looks once in a second.
const PATIENCE: Duration = Duration::from_secs(300);

/// The label by which Tekton says whose a task run and its pod are, and which task of the pipeline.
const RUN: &str = "tekton.dev/pipelineRun";
const TASK: &str = "tekton.dev/pipelineTask";

/// A namespace with the tasks and pipelines of this repository, and the accounts that they run with.
pub struct Runs {
    pub namespace: Namespace,
    pub machine: Arc<Machine>,
    _kubelet: Kubelet,
}

/// One run of a pipeline.
pub struct PipelineRun {
    pub name: String,
    pub uid: String,
    runs: Api<DynamicObject>,
    tasks: Api<DynamicObject>,
    machine: Arc<Machine>,
}

/// How a run, or one of its tasks, has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// `True`, `False`, or `Unknown` as long as it goes on.
    pub status: String,
    pub reason: String,
    pub message: String,
}

impl Runs {
    /// For apps in that namespace. Images have these programs, by the beginning of their names.
    pub async fn beside(staging: &Namespace, images: Vec<(String, Image)>) -> Self {
        let cluster = staging.cluster();
        let tekton = built();
        cluster.with_tekton(&tekton).await;
        let namespace = cluster.namespace().await;
        let deploying = namespace.account("session-proxy-deployer", &[]).await;
        deploying.grant(staging, &deployer()).await;
        namespace
            .create(&ServiceAccount {
                metadata: kube::api::ObjectMeta {
                    name: Some("session-proxy-build".to_owned()),
                    ..Default::default()
                },
                automount_service_account_token: Some(false),
                ..ServiceAccount::default()
            })
            .await;
        let mut all = of_tekton(&tekton);
        all.extend(images);
        let machine = Arc::new(Machine::new(cluster, all));
        let kubelet = Kubelet::executing(&namespace, machine.clone()).await;
        let runs = Self {
            namespace,
            machine,
            _kubelet: kubelet,
        };
        runs.apply("tasks", "Task").await;
        runs.apply("pipelines", "Pipeline").await;
        runs
    }

    /// Starts a run, in this namespace.
    pub async fn start_run(&self, mut run: Value) -> PipelineRun {
        run["metadata"]["namespace"] = json!(self.namespace.name());
        let runs = self.api("PipelineRun");
        let run = serde_json::from_value(run).expect("it is an object");
        let made = runs.create(&PostParams::default(), &run).await;
        let made = made.unwrap_or_else(|error| panic!("Tekton refuses the run: {error}"));
        PipelineRun {
            name: made.name_any(),
            uid: made.uid().expect("a stored object has a uid"),
            runs,
            tasks: self.api("TaskRun"),
            machine: self.machine.clone(),
        }
    }

    fn api(&self, kind: &str) -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("tekton.dev", "v1", kind));
        Api::namespaced_with(self.namespace.client(), self.namespace.name(), &kind)
    }

    /// Stores what has that kind in the files of a folder of the repository.
    async fn apply(&self, folder: &str, kind: &str) {
        let folder = repository().join(folder);
        let entries = std::fs::read_dir(&folder).expect("the repository has it");
        for entry in entries {
            let file = entry.expect("it can be read").path();
            if file.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let object = read(&file);
            if object["kind"] != kind {
                continue;
            }
            let object = serde_json::from_value(object).expect("it is an object");
            let made = self.api(kind).create(&PostParams::default(), &object).await;
            made.unwrap_or_else(|error| panic!("Tekton refuses {}: {error}", file.display()));
        }
    }
}

impl PipelineRun {
    /// Waits until the run has ended.
    pub async fn ends(&self) -> Outcome {
        let start = Instant::now();
        loop {
            let outcome = self.outcome().await;
            if outcome.status != "Unknown" {
                return outcome;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "it hangs: {outcome:?}\n{}",
                self.story().await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until it has ended; panics unless it went well.
    pub async fn goes_well(&self) {
        let outcome = self.ends().await;
        // A run with a skipped task ends as `Completed`, one without as `Succeeded`.
        assert_eq!(
            outcome.status,
            "True",
            "{outcome:?}\n{}",
            self.story().await
        );
    }

    /// Waits until it has ended; panics unless it failed.
    pub async fn fails(&self) -> Outcome {
        let outcome = self.ends().await;
        assert_eq!(
            outcome.status,
            "False",
            "{outcome:?}\n{}",
            self.story().await
        );
        outcome
    }

    /// Waits until the first step of that task runs.
    pub async fn reaches(&self, task: &str) {
        let start = Instant::now();
        loop {
            let tasks = self.task_runs().await;
            let seen = tasks.iter().find(|one| one.labels()[TASK] == task);
            let is_running = |one: &DynamicObject| {
                one.data["status"]["steps"]
                    .as_array()
                    .is_some_and(|steps| steps.iter().any(|step| step["running"].is_object()))
            };
            if seen.is_some_and(is_running) {
                return;
            }
            let outcome = self.outcome().await;
            assert!(
                outcome.status == "Unknown" && start.elapsed() < PATIENCE,
                "it does not reach {task}: {outcome:?}\n{}",
                self.story().await
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The last step of that task does this instead of its own command, from now on; it has not begun.
    pub fn last_step_does(&self, task: &str, words: &[&str]) {
        self.machine.instead(&self.pod(task), Steps::Last, words);
    }

    /// All steps of that task do this instead of their own commands.
    pub fn all_steps_do(&self, task: &str, words: &[&str]) {
        self.machine.instead(&self.pod(task), Steps::All, words);
    }

    /// The pod of that task, not of its retries.
    fn pod(&self, task: &str) -> String {
        format!("{}-{task}-pod", self.name)
    }

    /// Sets `spec.status`: `CancelledRunFinally`, `StoppedRunFinally`.
    pub async fn tell(&self, status: &str) {
        let patch = Patch::Merge(json!({"spec": {"status": status}}));
        let parameters = PatchParams::default();
        let told = self.runs.patch(&self.name, &parameters, &patch).await;
        told.expect("the administrator may tell a run");
    }

    pub async fn outcome(&self) -> Outcome {
        let run = self.runs.get(&self.name).await.expect("it is there");
        outcome(&run)
    }

    /// What came of each task that was started.
    pub async fn tasks(&self) -> BTreeMap<String, Outcome> {
        let tasks = self.task_runs().await;
        let named = |one: &DynamicObject| (one.labels()[TASK].clone(), outcome(one));
        tasks.iter().map(named).collect()
    }

    /// The results of the pipeline, by name.
    pub async fn results(&self) -> BTreeMap<String, String> {
        let run = self.runs.get(&self.name).await.expect("it is there");
        let results = run.data["status"]["results"].as_array().cloned();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let results = results.unwrap_or_default();
        { results.iter() }
            .map(|one| (text(&one["name"]), text(&one["value"])))
            .collect()
    }

    /// The tasks that were not started, and why.
    pub async fn skipped(&self) -> BTreeMap<String, String> {
        let run = self.runs.get(&self.name).await.expect("it is there");
        let skipped = run.data["status"]["skippedTasks"].as_array().cloned();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let skipped = skipped.unwrap_or_default();
        { skipped.iter() }
            .map(|one| (text(&one["name"]), text(&one["reason"])))
            .collect()
    }

    /// The folder behind its workspace: the claim that Tekton made for it, or the one that it names.
    pub async fn workspace(&self) -> PathBuf {
        let tasks = self.task_runs().await;
        let mut claims = tasks.iter().filter_map(|one| {
            let workspaces = one.data["spec"]["workspaces"].as_array()?;
            let name = &workspaces.first()?["persistentVolumeClaim"]["claimName"];
            name.as_str().map(str::to_owned)
        });
        let claim = claims.next().expect("a task has the workspace");
        self.machine.claim(&claim)
    }

    /// All that is known of it, for whoever has to find out what went wrong.
    pub async fn story(&self) -> String {
        let mut story = format!(
            "{:#?}\nskipped: {:#?}\n",
            self.tasks().await,
            self.skipped().await
        );
        story.push_str(&self.machine.said(&self.name));
        story
    }

    /// What the steps of one of its tasks have written.
    pub fn said(&self, task: &str) -> String {
        self.machine.said(&format!("{}-{task}", self.name))
    }

    async fn task_runs(&self) -> Vec<DynamicObject> {
        let own = ListParams::default().labels(&format!("{RUN}={}", self.name));
        let list = self.tasks.list(&own).await;
        list.expect("the administrator may list").items
    }
}

/// Returns once the condition holds; panics when it does not within the patience for a run, and tells
/// what the condition has said last.
pub async fn in_time(what: &str, mut condition: impl AsyncFnMut() -> Result<(), String>) {
    let start = Instant::now();
    while let Err(said) = condition().await {
        assert!(
            start.elapsed() < PATIENCE,
            "never came true: {what}: {said}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// One of `pipelines/samples`.
pub fn sample(file: &str) -> Value {
    read(&repository().join("pipelines/samples").join(file))
}

/// A manifest with one document.
fn read(file: &Path) -> Value {
    let text =
        std::fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// The run with these parameters, and its others as they are.
pub fn with_parameters(mut run: Value, parameters: &[(&str, &str)]) -> Value {
    let all = run["spec"]["params"]
        .as_array_mut()
        .expect("a sample has parameters");
    all.retain(|one| !parameters.iter().any(|(name, _)| one["name"] == *name));
    let own = parameters.iter();
    all.extend(own.map(|(name, value)| json!({"name": name, "value": value})));
    run
}

fn outcome(object: &DynamicObject) -> Outcome {
    let conditions = object.data["status"]["conditions"].as_array().cloned();
    let condition = conditions
        .unwrap_or_default()
        .into_iter()
        .find(|one| one["type"] == "Succeeded");
    let text = |key: &str| {
        let value = condition
            .as_ref()
            .and_then(|condition| condition[key].as_str());
        value.map(str::to_owned)
    };
    Outcome {
        status: text("status").unwrap_or_else(|| "Unknown".to_owned()),
        reason: text("reason").unwrap_or_default(),
        message: text("message").unwrap_or_default(),
    }
}

/// The folder where Tekton was built; builds it when nobody has.
pub fn built() -> PathBuf {
    let script = repository().join("tests/cluster/tekton/build");
    let output = Command::new(script)
        .stderr(std::process::Stdio::inherit())
        .output();
    let output = output.expect("there is a shell");
    assert!(output.status.success(), "Tekton cannot be built");
    let folder = String::from_utf8(output.stdout).expect("a plain path");
    PathBuf::from(folder.trim_end())
}

/// The images that Tekton itself puts into pods, as the plane names them.
fn of_tekton(folder: &Path) -> Vec<(String, Image)> {
    let program = |name: &str| {
        let path = format!("/ko-app/{name}");
        let image = Image {
            entrypoint: vec![path.clone()],
            programs: vec![(path, folder.join(name))],
            ..Image::default()
        };
        (format!("tekton.example/{name}"), image)
    };
    let shell = ("tekton.example/shell".to_owned(), Image::default());
    vec![
        program("entrypoint"),
        program("nop"),
        program("workingdirinit"),
        shell,
    ]
}

pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
