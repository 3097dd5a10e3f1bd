//! The server as its clients see it: the real program, over sockets.

mod abuse;
mod dialects;
mod grpc;
mod operation;
mod traces;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, ExitStatus};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::cli::spawn;
use crate::fixtures::path;

/// A server that is running, killed when the test has done with it.
struct Running {
    child: Child,
    /// `http://127.0.0.1:PORT`
    address: String,
    /// Lines of its log.
    log: Mutex<Receiver<Value>>,
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// Starts a server with these fixtures as its models, and waits until it is ready.
fn serve(models: &[&str], args: &[&str]) -> Running {
    let running = start(models, args);
    let start = Instant::now();
    while running.get("/ready").status != 200 {
        assert!(start.elapsed() < Duration::from_secs(120), "not ready");
        thread::sleep(Duration::from_millis(20));
    }
    running
}

/// Starts a server, which may still be loading.
fn start(models: &[&str], args: &[&str]) -> Running {
    let mut all = vec!["serve".to_owned(), "--log-format=json".to_owned(), "--threads=2".to_owned()];
    if !args.iter().any(|arg| arg.starts_with("--uds-path") || arg.starts_with("--port")) {
        all.push("--port=0".to_owned());
    }
    for model in models {
        all.extend(["--model".to_owned(), path(model).to_str().unwrap().to_owned()]);
    }
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    running(spawn(all))
}

/// Starts a server on a port of its own, and waits until it is ready.
fn serve_at(models: &[&str], port: &str) -> Running {
    let address = format!("--port={port}");
    let running = start(models, &[&address]);
    running.logged("ready");
    running
}

/// A server that has been started, and listens.
fn running(mut child: Child) -> Running {
    let stderr = child.stderr.take().unwrap();
    let (lines, log) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stderr).lines() {
            let Ok(line) = line else { return };
            let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
            if lines.send(line).is_err() {
                return;
            }
        }
    });
    let mut running = Running { child, address: String::new(), log: Mutex::new(log) };
    running.address = running.logged("listening")["address"].as_str().unwrap().to_owned();
    running
}

impl Running {
    /// The next line of the log with this message.
    fn logged(&self, message: &str) -> Value {
        loop {
            let line = self.next_line();
            if line["message"] == message {
                return line;
            }
            assert!(line.is_object(), "{line}");
        }
    }

    fn next_line(&self) -> Value {
        self.log.lock().unwrap().recv_timeout(Duration::from_secs(120)).expect("the log has ended")
    }

    /// The next line of the log; nothing when it has ended.
    fn line_before_the_end(&self) -> Option<Value> {
        self.log.lock().unwrap().recv_timeout(Duration::from_secs(120)).ok()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address.strip_prefix("http://").unwrap()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        stream
    }

    fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], b"")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes())
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        write_request(&mut stream, method, path, headers, body);
        read_answer(stream)
    }

    /// Sends SIGTERM.
    fn terminate(&self) {
        let killed = std::process::Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
    }

    /// Waits for the end of the process.
    fn ended(mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < Duration::from_secs(120), "the server does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn write_request(stream: &mut impl Write, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    if method == "POST" {
        head += &format!("content-length: {}\r\n", body.len());
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).expect("the server takes the whole body, even of a request that it refuses");
}

fn read_answer(mut stream: impl Read) -> Answer {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("no answer is cut off");
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| {
        panic!("no answer: {:?}", String::from_utf8_lossy(&bytes));
    });
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_lowercase(), value.to_owned())
    };
    let headers = lines.map(header).collect();
    Answer { status, headers, body: String::from_utf8(bytes[end + 4..].to_vec()).unwrap() }
}
