//! HTTP faces.
/// All routes.
pub fn router(handle: crate::Handle) -> axum::Router {
    drop(handle);
    axum::Router::new()
}
