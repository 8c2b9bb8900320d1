//! The four ways, each against real programs: BIND's and Knot's servers, `dig`, shell scripts, and
//! an HTTP server that speaks as Cloudflare's does.

mod check;
mod cloudflare;
mod exec;
mod responder;
mod rfc2136;
mod servers;
