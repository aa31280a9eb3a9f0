//! The checks of the pod security standard `restricted`, as far as an object alone can be judged.
//!
//! The API server has the last word; this one is at hand in every test.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

/// Everything by which a pod offends against the standard.
pub(super) fn offences(pod: &Pod) -> Vec<String> {
    let spec = pod.spec.as_ref().expect("a pod has a spec");
    let containers = spec
        .init_containers
        .iter()
        .flatten()
        .chain(&spec.containers);
    let mut offences = of_pod(spec);
    offences.extend(
        spec.volumes
            .iter()
            .flatten()
            .filter(|v| !is_harmless(v))
            .map(|v| format!("volume {}", v.name)),
    );
    offences.extend(containers.flat_map(|container| of_container(container, spec)));
    offences
}

fn of_pod(spec: &PodSpec) -> Vec<String> {
    let context = spec.security_context.clone().unwrap_or_default();
    let checks = [
        (spec.host_network == Some(true), "hostNetwork"),
        (spec.host_pid == Some(true), "hostPID"),
        (spec.host_ipc == Some(true), "hostIPC"),
        (context.run_as_user == Some(0), "runAsUser"),
        (context.sysctls.is_some(), "sysctls"),
        (context.se_linux_options.is_some(), "seLinuxOptions"),
        (context.windows_options.is_some(), "windowsOptions"),
    ];
    named(&checks)
}

fn of_container(container: &Container, spec: &PodSpec) -> Vec<String> {
    let pod = spec.security_context.clone().unwrap_or_default();
    let context = container.security_context.clone().unwrap_or_default();
    let capabilities = context.capabilities.unwrap_or_default();
    let seccomp = context
        .seccomp_profile
        .or(pod.seccomp_profile)
        .map(|profile| profile.type_);
    let is_safe = |capability: &String| capability == "NET_BIND_SERVICE";
    let checks = [
        (context.privileged == Some(true), "privileged"),
        (
            context.allow_privilege_escalation != Some(false),
            "allowPrivilegeEscalation",
        ),
        (
            context.run_as_non_root.or(pod.run_as_non_root) != Some(true),
            "runAsNonRoot",
        ),
        (context.run_as_user == Some(0), "runAsUser"),
        (
            !matches!(seccomp.as_deref(), Some("RuntimeDefault" | "Localhost")),
            "seccompProfile",
        ),
        (
            !capabilities.drop.iter().flatten().any(|name| name == "ALL"),
            "capabilities.drop",
        ),
        (
            !capabilities.add.iter().flatten().all(is_safe),
            "capabilities.add",
        ),
        (context.proc_mount.is_some(), "procMount"),
        (context.app_armor_profile.is_some(), "appArmorProfile"),
        (
            container
                .ports
                .iter()
                .flatten()
                .any(|port| port.host_port.is_some()),
            "hostPort",
        ),
    ];
    let offences = named(&checks).into_iter();
    offences
        .map(|offence| format!("container {}: {offence}", container.name))
        .collect()
}

fn is_harmless(volume: &Volume) -> bool {
    volume.config_map.is_some()
        || volume.empty_dir.is_some()
        || volume.projected.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.persistent_volume_claim.is_some()
}

fn named(checks: &[(bool, &str)]) -> Vec<String> {
    let offences = checks.iter().filter(|(is_offence, _)| *is_offence);
    offences.map(|(_, name)| (*name).to_owned()).collect()
}
