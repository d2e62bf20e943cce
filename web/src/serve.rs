//! A web server on the loopback interface: serves the files of a few folders with the media types that browsers
//! require.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tiny_http::{HTTPVersion, Header, Method, Request, Response};

/// Number of requests handled in parallel; a browser opens six connections.
const THREADS: usize = 8;

/// URL paths and their folders, such as `/` and the repository.
type Mounts = Vec<(String, PathBuf)>;

/// A running server, stopped when dropped.
pub struct Server {
    http: Arc<tiny_http::Server>,
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves folders on 127.0.0.1; port 0 selects a free port. A request is served by the longest matching path.
    ///
    /// # Errors
    /// If the port is in use.
    pub fn start(port: u16, mounts: &[(&str, &Path)]) -> io::Result<Self> {
        Self::start_with(port, mounts, &[])
    }

    /// As [`start`](Self::start), and sends `headers` with every file, such as `("Content-Security-Policy", "...")`.
    ///
    /// # Errors
    /// If the port is in use or a header is not ASCII.
    pub fn start_with(port: u16, mounts: &[(&str, &Path)], headers: &[(&str, &str)]) -> io::Result<Self> {
        let header = |(name, value): &(&str, &str)| {
            let header = Header::from_bytes(*name, *value);
            header.map_err(|()| io::Error::other(format!("header {name}: expected ASCII, found `{value}`")))
        };
        let headers: Arc<[Header]> = headers.iter().map(header).collect::<io::Result<_>>()?;
        let http = tiny_http::Server::http(("127.0.0.1", port)).map_err(io::Error::other)?;
        let address = http.server_addr().to_ip().ok_or_else(|| io::Error::other("no address"))?;
        let mut mounts: Mounts = mounts.iter().map(|(at, folder)| ((*at).into(), (*folder).into())).collect();
        mounts.sort_by_key(|(at, _)| std::cmp::Reverse(at.len()));
        let server = Self { http: Arc::new(http), address, asked: Arc::default() };
        for _ in 0..THREADS {
            let (http, mounts, asked) = (server.http.clone(), mounts.clone(), server.asked.clone());
            let headers = headers.clone();
            thread::spawn(move || {
                while let Ok(request) = http.recv() {
                    let line = format!("{} {}", request.method(), request.url());
                    asked.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                    // The browser may have closed the connection.
                    let _ = answer(request, &mounts, &headers);
                }
            });
        }
        Ok(server)
    }

    /// The server's address, such as `http://127.0.0.1:8080`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// All requests so far, such as `GET /index.html`.
    pub fn requests(&self) -> Vec<String> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        for _ in 0..THREADS {
            self.http.unblock();
        }
    }
}

fn answer(request: Request, mounts: &Mounts, extra: &[Header]) -> io::Result<()> {
    if !matches!(request.method(), Method::Get | Method::Head) {
        return respond(request, Response::empty(405));
    }
    let Some((path, file)) =
        find(request.url(), mounts).and_then(|path| Some((path.clone(), File::open(path).ok()?)))
    else {
        return respond(request, Response::from_string("not found").with_status_code(404));
    };
    let metadata = file.metadata()?;
    let changed = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let tag = format!("\"{:x}-{:x}\"", metadata.len(), changed.as_nanos());
    let same = request
        .headers()
        .iter()
        .any(|header| header.field.equiv("If-None-Match") && header.value == tag.as_str());
    let headers = [("Content-Type", media_type(&path)), ("ETag", &tag), ("Cache-Control", "no-cache")];
    let headers = headers.iter().flat_map(|(name, value)| Header::from_bytes(*name, *value));
    let headers = headers.chain(extra.iter().cloned()).collect();
    let length = usize::try_from(metadata.len()).map_err(io::Error::other)?;
    let (status, body): (u16, Box<dyn Read + Send>) =
        if same { (304, Box::new(io::empty())) } else { (200, Box::new(file)) };
    let length = if same { 0 } else { length };
    // With a length instead of chunks, so that the page can show the progress of a download.
    let response = Response::new(status.into(), headers, body, Some(length), None);
    respond(request, response.with_chunked_threshold(usize::MAX))
}

/// Sends an HTTP/1.0 response, after which the browser closes the connection. An open connection occupies one of
/// tiny_http's threads, and with several of them a new connection can wait forever.
fn respond<R: Read>(request: Request, response: Response<R>) -> io::Result<()> {
    let (headers, head) = (request.headers().to_vec(), *request.method() == Method::Head);
    let mut writer = request.into_writer();
    response.raw_print(&mut writer, HTTPVersion(1, 0), &headers, head, None)?;
    writer.flush()
}

/// The file at a URL. Hidden files and files outside the folders are not served.
fn find(url: &str, mounts: &Mounts) -> Option<PathBuf> {
    let path = url.split(['?', '#']).next()?;
    let (mount, folder) = mounts.iter().find(|(at, _)| path.starts_with(at.as_str()))?;
    let mut file = folder.clone();
    for part in path[mount.len()..].split('/').filter(|part| !part.is_empty()) {
        let plain = part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte));
        if !plain || part.starts_with('.') {
            return None;
        }
        file.push(part);
    }
    if file.is_dir() {
        file.push("index.html");
    }
    file.is_file().then_some(file)
}

fn media_type(path: &Path) -> &'static str {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("html") => "text/html; charset=utf-8",
        Some("js" | "mjs") => "text/javascript; charset=utf-8",
        Some("css") => "text/css; charset=utf-8",
        Some("json") => "application/json",
        Some("svg") => "image/svg+xml",
        Some("png") => "image/png",
        Some("wasm") => "application/wasm",
        _ => "application/octet-stream",
    }
}
