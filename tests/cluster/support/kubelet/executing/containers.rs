//! The containers of one pod: first the init containers, one after the other, then all others at once.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::machine::Machine;
use super::report::{Report, State};
use super::root::{Root, written_to};
use super::volumes::Volumes;
use crate::it::support::app::fresh_ip;
use crate::support::kubelet::Shared;

pub(super) struct Containers {
    pod: Pod,
    machine: Arc<Machine>,
    volumes: Volumes,
    report: tokio::sync::Mutex<Report>,
    /// The first processes of those that run.
    running: Mutex<Vec<u32>>,
    is_ending: AtomicBool,
}

/// A process that does not outlive whoever waits for it.
struct Process(Child);

impl Containers {
    pub(super) async fn of(pod: &Pod, machine: Arc<Machine>) -> Self {
        Self {
            pod: pod.clone(),
            volumes: Volumes::of(pod, &machine).await,
            machine,
            report: tokio::sync::Mutex::new(Report::of(pod, fresh_ip())),
            running: Mutex::default(),
            is_ending: AtomicBool::new(false),
        }
    }

    /// Returns when nothing runs any more.
    pub(super) async fn run(&self, shared: &Shared) {
        let spec = self.pod.spec.as_ref().expect("a pod has a spec");
        for container in spec.init_containers.iter().flatten() {
            if self.one(container, shared).await != Some(0) {
                return;
            }
        }
        join_all({ spec.containers.iter() }.map(|container| self.one(container, shared))).await;
    }

    /// Writes what the downward API has to say.
    pub(super) fn refresh(&self, pod: &Pod) {
        self.volumes.refresh(pod);
    }

    /// Tells all that run to end.
    pub(super) fn terminate(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
        self.signal("TERM");
    }

    pub(super) fn kill(&self) {
        self.is_ending.store(true, Ordering::SeqCst);
        self.signal("KILL");
    }

    fn signal(&self, name: &str) {
        for process in self.running.lock().expect("nobody panics with it").iter() {
            // It may have ended by itself.
            let _ = Command::new("kill")
                .args([&format!("-{name}"), &process.to_string()])
                .status();
        }
    }

    /// Runs one container to its end: its exit code, if it has run.
    async fn one(&self, container: &Container, shared: &Shared) -> Option<i32> {
        if self.is_ending.load(Ordering::SeqCst) {
            return None;
        }
        let name = container.image.as_deref().unwrap_or_default();
        let Some(image) = self.machine.image(name) else {
            let why = format!("Back-off pulling image \"{name}\": not found");
            self.tell(shared, container, State::ImagePullBackOff(why))
                .await;
            return None;
        };
        let message = self.message_file(container);
        let root = Root {
            pod: &self.pod,
            container,
            image,
            volumes: &self.volumes,
            machine: &self.machine,
            message: &message,
        };
        let mut command = root.command();
        written_to(
            &mut command,
            &self.machine.output(&self.pod, &container.name),
        );
        let mut process = Process(command.spawn().expect("bubblewrap is installed"));
        let first = process.first().await;
        self.running
            .lock()
            .expect("nobody panics with it")
            .extend(first);
        self.tell(shared, container, State::running()).await;

        let code = process.ended().await;
        self.running
            .lock()
            .expect("nobody panics with it")
            .retain(|process| Some(*process) != first);
        let message = std::fs::read(&message).unwrap_or_default();
        let message = String::from_utf8_lossy(&message).into_owned();
        self.tell(shared, container, State::Ended { code, message })
            .await;
        Some(code)
    }

    fn message_file(&self, container: &Container) -> PathBuf {
        let file = format!("{}-message", container.name);
        let file = self.volumes.folder.path().join(file);
        std::fs::write(&file, "").expect("a writable folder");
        let everybody = Permissions::from_mode(0o666);
        std::fs::set_permissions(&file, everybody).expect("it is ours");
        file
    }

    async fn tell(&self, shared: &Shared, container: &Container, state: State) {
        // Held until the API server has it: overtaken by a newer one, a report would take back what ended.
        let mut report = self.report.lock().await;
        report.set(&container.name, state);
        shared.patch(&self.pod, report.status(&self.pod)).await;
    }
}

impl Process {
    /// The container's first process, which gets its signals. `None` when it has ended already.
    async fn first(&mut self) -> Option<u32> {
        let outer = self.0.id();
        let children = format!("/proc/{outer}/task/{outer}/children");
        loop {
            let text = std::fs::read_to_string(&children).unwrap_or_default();
            if let Some(child) = text.split_whitespace().next() {
                return child.parse().ok();
            }
            if self
                .0
                .try_wait()
                .expect("a child can be waited for")
                .is_some()
            {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn ended(&mut self) -> i32 {
        loop {
            if let Some(status) = self.0.try_wait().expect("a child can be waited for") {
                return status.code().unwrap_or(137);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What it started dies with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
