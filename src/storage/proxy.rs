//! The proxy for HTTP, which variables of the environment name. ureq reads them, but it would connect without a proxy that it
//! does not understand.

use ureq::http::Uri;
use ureq::{Proxy, ProxyProtocol};

/// The variables, in ureq's order: the first one that is set decides.
const VARIABLES: [&str; 6] = ["ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"];

/// Checks that the value that decides is a URL. An empty value counts as unset.
pub(super) fn check_variables(variable: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let first = VARIABLES.iter().find_map(|name| Some((name, variable(name).filter(|value| !value.is_empty())?)));
    match first {
        // The value may have a password.
        Some((name, value)) if Proxy::new(&value).is_err() => {
            Err(format!("{name} is not the URL of a proxy; write it as http://HOST:PORT"))
        }
        _ => Ok(()),
    }
}

/// Checks that a server can be reached through the proxy, if it has to be.
pub(super) fn check(proxy: Option<&Proxy>, server: &Uri) -> Result<(), String> {
    match proxy {
        Some(proxy) if is_socks(proxy) && !proxy.is_no_proxy(server) => Err(format!(
            "SOCKS proxies, such as {}, are not supported; set ALL_PROXY to an HTTP proxy, or add {} to NO_PROXY",
            proxy.host(),
            server.host().unwrap_or("the server")
        )),
        _ => Ok(()),
    }
}

fn is_socks(proxy: &Proxy) -> bool {
    !matches!(proxy.protocol(), ProxyProtocol::Http | ProxyProtocol::Https)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_variable_must_be_a_url() {
        let check = |set: &[(&str, &str)]| {
            check_variables(|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned()))
        };
        assert_eq!(check(&[]), Ok(()));
        assert_eq!(check(&[("ALL_PROXY", ""), ("http_proxy", "proxy:3128")]), Ok(()));
        assert_eq!(check(&[("HTTPS_PROXY", "http://me:secret@proxy"), ("http_proxy", "ftp://proxy")]), Ok(()));
        for wrong in ["ftp://me:secret@proxy", "http://"] {
            let error = check(&[("HTTPS_PROXY", wrong), ("HTTP_PROXY", "http://proxy")]).unwrap_err();
            assert!(error.starts_with("HTTPS_PROXY is not the URL of a proxy") && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_socks_proxy_is_refused_for_servers_that_need_it() {
        let server = Uri::from_static("https://nas.example/repo");
        assert_eq!(check(None, &server), Ok(()));
        assert_eq!(check(Some(&Proxy::new("http://proxy:3128").unwrap()), &server), Ok(()));
        for socks in
            ["socks://proxy", "socks4://proxy", "socks4a://proxy", "socks5://me:secret@proxy", "socks5h://proxy"]
        {
            let error = check(Some(&Proxy::new(socks).unwrap()), &server).unwrap_err();
            assert!(
                error.starts_with("SOCKS proxies, such as proxy,") && error.contains("add nas.example to"),
                "{error}"
            );
        }
        let exempt = Proxy::builder(ProxyProtocol::Socks5).host("proxy").port(1080).no_proxy("nas.example");
        assert_eq!(check(Some(&exempt.build().unwrap()), &server), Ok(()));
    }
}
