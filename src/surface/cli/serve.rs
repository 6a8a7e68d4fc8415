//! `serve`: the first process reads the server file and becomes the keeper.

use std::net::SocketAddr;

use clap::builder::TypedValueParser as _;

/// Where to listen; what is not given here is taken from the server file.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(
    after_help = "What is not said here is taken from DIR/larder.yml, if it is there.\nWhen the server is ready it prints one line, `ready ssh=HOST:PORT http=HOST:PORT`.\nAs root every environment gets users of its own; otherwise everything runs as you, and projects are not isolated."
)]
pub struct Args {
    /// Where pushes arrive; port 0 picks a free one
    #[arg(long, value_name = "ADDR", value_parser = clap::builder::NonEmptyStringValueParser::new().try_map(address))]
    pub ssh: Option<SocketAddr>,
    /// Where HTTP is served; port 0 picks a free one
    #[arg(long, value_name = "ADDR", value_parser = clap::builder::NonEmptyStringValueParser::new().try_map(address))]
    pub http: Option<SocketAddr>,
}

/// `127.0.0.1:2222`, `[::1]:2222`, or `:2222` for all addresses.
fn address(text: String) -> Result<SocketAddr, String> {
    let full = text.strip_prefix(':').map(|port| format!("0.0.0.0:{port}")).unwrap_or_else(|| text.clone());
    full.parse().map_err(|_| format!("{text:?} is not an address; write HOST:PORT, such as 127.0.0.1:2222 or 0.0.0.0:22"))
}
