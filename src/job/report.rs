//! Pings of a URL at the beginning and the end of a run.

use std::time::Duration;

use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::secret::{Patience, Secret};
use crate::storage::{Interrupt, agent};

/// How long a ping may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tells a URL about a run: `end` is added to its path. An interrupt shortens all waits. The error has no secret.
pub fn ping(url: &Secret, end: &str, body: Option<&str>, interrupt: &Interrupt) -> Result<(), String> {
    let url = url.line(Patience { time: PATIENCE, is_interrupted: &|| interrupt.is_set() })?;
    let tls = TlsConfig::builder().provider(TlsProvider::NativeTls).root_certs(RootCerts::PlatformVerifier).build();
    let config = Agent::config_builder().timeout_global(Some(PATIENCE)).tls_config(tls).build();
    let agent = agent(config, interrupt);
    let url = url.trim().to_owned();
    let whole = format!("{}/{end}", url.trim_end_matches('/'));
    let sent = match body {
        Some(body) => agent.post(&whole).send(body),
        None => agent.get(&whole).call(),
    };
    // The words of an error may repeat the URL. Those of a connector have no meaning of their own in front.
    let told = |error: ureq::Error| match error {
        ureq::Error::Other(cause) => cause.to_string(),
        error => error.to_string(),
    };
    sent.map(drop).map_err(|error| told(error).replace(&whole, "the URL").replace(&url, "the URL"))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::time::Instant;

    use super::*;

    #[test]
    fn an_interrupt_ends_the_wait_for_a_silent_server_or_command() {
        // It accepts connections by itself, and never answers.
        let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("url");
        std::fs::write(&file, url).unwrap();
        for secret in [Secret::File(file), Secret::Command(["sleep", "1000"].map(str::to_owned).to_vec())] {
            let interrupt = Interrupt::default();
            let begun = Instant::now();
            std::thread::scope(|threads| {
                let pinging = threads.spawn(|| ping(&secret, "start", None, &interrupt));
                std::thread::sleep(Duration::from_millis(200));
                interrupt.set();
                interrupt.end_silence(Duration::from_secs(4));
                pinging.join().unwrap().unwrap_err();
            });
            assert!(begun.elapsed() < PATIENCE / 2);
        }
    }
}
