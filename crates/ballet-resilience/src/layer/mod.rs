//! Thin layers around any [`tower::Service`]; follows.
