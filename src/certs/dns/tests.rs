//! The four ways, each against real programs: BIND's and Knot's servers, `dig`, shell scripts, and
//! an HTTP server that speaks as Cloudflare's does.

mod responder;
mod rfc2136;
mod servers;
