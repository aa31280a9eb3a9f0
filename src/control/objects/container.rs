//! Which container of a pod is the app.

use k8s_openapi::api::core::v1::PodSpec;

/// Name of the container that serves the app: the one that declares one of its ports (the first of
/// `ports` that anyone declares), else the one that has the app's name, else the first. `None` for a
/// spec without containers.
pub fn of_app<'s>(spec: &'s PodSpec, app: &str, ports: &[u16]) -> Option<&'s str> {
    panic!("to be written: {spec:?} {app} {ports:?}")
}
