//! Drives Chromium over its DevTools protocol, as far as the tests need it. Messages are JSON terminated by a zero
//! byte, sent through pipes that are file descriptors 3 and 4 of the browser.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Names of the browser's program, in order of preference.
const PROGRAMS: [&str; 4] = ["chromium", "chromium-browser", "google-chrome", "chrome"];

const QUIET: [&str; 8] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
];

/// WebGPU on the CPU (SwiftShader), for machines without a GPU.
const SOFTWARE_WEBGPU: [&str; 7] = [
    "--enable-unsafe-webgpu",
    "--enable-features=Vulkan,WebGPU",
    "--use-webgpu-adapter=swiftshader",
    "--use-angle=swiftshader",
    // Without it, the browser's GPU process crashes when a canvas is shown.
    "--use-vulkan=swiftshader",
    "--ignore-gpu-blocklist",
    // The watchdog stops a GPU process that computes for as long as a software adapter does.
    "--disable-gpu-watchdog",
];

/// Timeout of every operation.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whether the browser has WebGPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WebGpu {
    /// On a software adapter.
    Software,
    /// Disabled.
    Absent,
}

/// A browser with one page.
pub struct Browser {
    program: Child,
    to: ChildStdin,
    from: Receiver<Vec<u8>>,
    session: String,
    sent: u64,
    loaded: bool,
    /// Errors of the page: console errors, exceptions and failed requests.
    pub complaints: Vec<String>,
    /// Folder of the profile, removed when the browser is dropped.
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser with a new profile.
    ///
    /// # Panics
    /// If no browser is installed.
    pub fn start(webgpu: WebGpu) -> Self {
        let profile = tempfile::tempdir().expect("a folder for the browser's profile");
        let mut flags = QUIET.map(String::from).to_vec();
        flags.push(format!("--user-data-dir={}", profile.path().display()));
        match webgpu {
            WebGpu::Software => flags.extend(SOFTWARE_WEBGPU.map(String::from)),
            WebGpu::Absent => flags.push("--disable-features=WebGPU,WebGPUService".into()),
        }
        flags.push("about:blank".into());
        let named = std::env::var("CHROMIUM").ok();
        let candidates = named.iter().map(String::as_str).chain(PROGRAMS);
        let exists = |name: &&str| {
            Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
        };
        let name = candidates.into_iter().find(exists).unwrap_or_else(|| {
            panic!("no Chromium found: install it (Debian: apt-get install chromium), or name it in CHROMIUM")
        });
        let mut program = Command::new("sh")
            .args(["-c", r#"exec "$0" "$@" 3<&0 4>&1 0</dev/null 1>/dev/null"#, name])
            .args(&flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        let (to, answers) = (program.stdin.take().expect("a pipe"), program.stdout.take().expect("a pipe"));
        let (send, from) = channel();
        thread::spawn(move || {
            let mut answers = BufReader::new(answers);
            let mut message = Vec::new();
            // Until the browser or the test ends.
            while answers.read_until(0, &mut message).is_ok_and(|read| read > 0) {
                message.pop();
                if send.send(std::mem::take(&mut message)).is_err() {
                    break;
                }
            }
        });
        let mut browser = Self {
            program,
            to,
            from,
            session: String::new(),
            sent: 0,
            loaded: false,
            complaints: Vec::new(),
            _profile: profile,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attached =
            browser.call("Target.attachToTarget", json!({ "targetId": target["targetId"], "flatten": true }));
        browser.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            browser.call(domain, json!({}));
        }
        browser
    }

    /// Opens an address and waits for the page's `load` event.
    pub fn open(&mut self, url: &str) {
        self.loaded = false;
        let answer = self.call("Page.navigate", json!({ "url": url }));
        assert!(answer.get("errorText").is_none(), "{url}: {}", answer["errorText"]);
        while !self.loaded {
            self.hear(url);
        }
    }

    /// Evaluates an expression in the page and awaits it. Panics if it throws.
    pub fn eval(&mut self, expression: &str) -> Value {
        let answer = self.call(
            "Runtime.evaluate",
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true, "userGesture": true }),
        );
        if let Some(thrown) = answer.get("exceptionDetails") {
            let text = thrown["exception"]["description"].as_str().or(thrown["text"].as_str());
            panic!("the page threw {} in {expression}", text.unwrap_or_default());
        }
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    pub fn wait_for(&mut self, expression: &str) {
        let start = Instant::now();
        while self.eval(expression) != json!(true) {
            assert!(
                start.elapsed() < PATIENCE,
                "timeout: {expression} is not true; errors of the page: {:?}",
                self.complaints
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A PNG screenshot of the visible part of the page, or of the whole page.
    pub fn screenshot(&mut self, whole: bool) -> Vec<u8> {
        let answer =
            self.call("Page.captureScreenshot", json!({ "format": "png", "captureBeyondViewport": whole }));
        let data = answer["data"].as_str().expect("a picture");
        base64::engine::general_purpose::STANDARD.decode(data).expect("a picture")
    }

    /// The visible pixels of an element, RGBA. A script cannot read a canvas that WebGPU has drawn to after it is
    /// shown.
    pub fn seen(&mut self, element: &str) -> Value {
        let area = self.eval(&format!(
            "(({{ x, y, width, height }}) => ({{ x, y, width, height, scale: 1 }}))({element}.getBoundingClientRect())"
        ));
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png", "clip": area }));
        self.eval(&format!(
            "(async () => {{
                const file = await fetch('data:image/png;base64,' + {});
                const picture = await createImageBitmap(await file.blob());
                const copy = new OffscreenCanvas(picture.width, picture.height).getContext('2d');
                copy.drawImage(picture, 0, 0);
                return [...copy.getImageData(0, 0, picture.width, picture.height).data];
            }})()",
            picture["data"]
        ))
    }

    /// Sends a command of the protocol and waits for its response.
    pub fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.sent += 1;
        let mut message = json!({ "id": self.sent, "method": method, "params": parameters });
        if !self.session.is_empty() {
            message["sessionId"] = json!(self.session);
        }
        self.to.write_all(format!("{message}\0").as_bytes()).expect("the browser listens");
        let id = self.sent;
        loop {
            let message = self.hear(&message.to_string());
            if message["id"] == json!(id) {
                assert!(message.get("error").is_none(), "{method}: {}", message["error"]);
                return message["result"].clone();
            }
        }
    }

    /// The next message after `asked`. Collects errors from events that arrive before it.
    fn hear(&mut self, asked: &str) -> Value {
        let message = self.from.recv_timeout(PATIENCE);
        let message =
            message.unwrap_or_else(|_| panic!("timeout: no message from the browser after {asked}"));
        let message: Value = serde_json::from_slice(&message).unwrap_or_default();
        let details = &message["params"];
        let complaint = match message["method"].as_str() {
            Some("Page.loadEventFired") => {
                self.loaded = true;
                None
            }
            Some("Runtime.exceptionThrown") => Some(details["exceptionDetails"].to_string()),
            Some("Runtime.consoleAPICalled") if details["type"] == "error" => {
                Some(details["args"].to_string())
            }
            Some("Log.entryAdded") if details["entry"]["level"] == "error" => {
                Some(details["entry"].to_string())
            }
            _ => None,
        };
        self.complaints.extend(complaint);
        message
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ignore errors: the browser is being closed.
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}
