//! `runtime_type = "vm"`: CRI-O runs the shim's `start` in each container's bundle and speaks version 2 of the Task API to the
//! address it prints. There is no containerd, so nobody takes events.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use containerd_shim_protos::api::{
    CreateTaskRequest, CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    ShutdownRequest, StartRequest, StartResponse, StateRequest, StateResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message};
use kata_testkit::bundle::Bundle;
use kata_testkit::cmd::Cmd;
use kata_testkit::leaks::Guard;
use kata_testkit::runtime::{Runtime, stage};
use kata_testkit::wait;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::pod::{Pinned, container, process, sandbox};
use crate::{PATH, SOON, STARTS};

/// The only version that CRI-O knows.
const SERVICE: &str = "containerd.task.v2.Task";
/// containerd's name of the namespace that CRI-O uses.
const NAMESPACE: &str = "default";

/// A connection to a shim.
#[derive(Clone)]
struct Shim(ttrpc::Client);

impl Shim {
    /// `start`, as CRI-O calls it, which takes all that is printed for the address.
    fn start(id: &str, bundle: &Path, log: &Log) -> (Shim, String) {
        let program = stage().join("bin/containerd-shim-kata-v2");
        let run =
            Cmd::new("env").args(["-i", PATH, "TTRPC_ADDRESS=", "GRPC_ADDRESS=", "NAMESPACE=default"]).arg(program);
        let run =
            run.args(["-namespace", NAMESPACE, "-address", "", "-publish-binary", "/usr/bin/crio", "-id", id, "start"]);
        let out = run.dir(bundle).deadline(STARTS).run();
        assert_eq!((out.code(), out.err().as_str()), (0, ""), "{}\n{}", out.report(), log.text());
        let address = out.out();
        assert!(address.starts_with("unix:///"), "{}", out.report());
        // It is read again when CRI-O itself was restarted.
        assert_eq!(fs::read_to_string(bundle.join("address")).unwrap().trim(), address);
        let client = ttrpc::Client::connect(&address).unwrap_or_else(|e| panic!("{address}: {e}"));
        (Shim(client), address)
    }

    fn call<R: Message>(&self, method: &str, request: &impl Message, within: Duration) -> Result<R, ttrpc::Error> {
        let answer = self.0.request(ttrpc::Request {
            service: SERVICE.into(),
            method: method.into(),
            payload: request.write_to_bytes().unwrap(),
            timeout_nano: i64::try_from(within.as_nanos()).unwrap(),
            ..Default::default()
        })?;
        Ok(R::parse_from_bytes(&answer.payload).unwrap())
    }

    fn ask<R: Message>(&self, method: &str, request: &impl Message) -> R {
        self.call(method, request, STARTS).unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    fn create(&self, id: &str, bundle: &Bundle, io: &Fifos) -> u32 {
        let mut request = CreateTaskRequest::new();
        request.id = id.into();
        request.bundle = bundle.path().display().to_string();
        request.stdout = io.stdout.display().to_string();
        request.stderr = io.stderr.display().to_string();
        self.ask::<CreateTaskResponse>("Create", &request).pid
    }

    fn start_process(&self, id: &str, exec: &str) -> u32 {
        let request = StartRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.ask::<StartResponse>("Start", &request).pid
    }

    fn wait(&self, id: &str, exec: &str) -> JoinHandle<u32> {
        let (shim, request) = (self.clone(), WaitRequest { id: id.into(), exec_id: exec.into(), ..Default::default() });
        std::thread::spawn(move || shim.ask::<WaitResponse>("Wait", &request).exit_status)
    }

    fn kill(&self, id: &str, signal: u32) {
        let _: Empty = self.ask("Kill", &KillRequest { id: id.into(), signal, ..Default::default() });
    }

    fn delete(&self, id: &str, exec: &str) -> u32 {
        let request = DeleteRequest { id: id.into(), exec_id: exec.into(), ..Default::default() };
        self.ask::<DeleteResponse>("Delete", &request).exit_status
    }

    /// CRI-O says this after every container's delete, not only the sandbox's. The end of the connection is an answer.
    fn shutdown(&self, id: &str) {
        let request = ShutdownRequest { id: id.into(), ..Default::default() };
        drop(self.call::<Empty>("Shutdown", &request, SOON));
    }

    fn status(&self, id: &str) -> String {
        let state: StateResponse = self.ask("State", &StateRequest { id: id.into(), ..Default::default() });
        format!("{:?}", EnumOrUnknown::enum_value_or_default(&state.status))
    }

    fn exec(&self, id: &str, bundle: &mut Bundle, io: &Fifos, script: &str) -> u32 {
        let dir = bundle.path().to_owned();
        let spec = fs::read(process(bundle, &dir, script)).unwrap();
        let mut request = ExecProcessRequest { id: id.into(), exec_id: "exec".into(), ..Default::default() };
        request.stdout = io.stdout.display().to_string();
        request.stderr = io.stderr.display().to_string();
        let type_url = "types.containerd.io/opencontainers/runtime-spec/1/Process".into();
        request.spec = Some(Any { type_url, value: spec, ..Default::default() }).into();
        let _: Empty = self.ask("Exec", &request);
        let end = self.wait(id, "exec");
        self.start_process(id, "exec");
        let code = end.join().unwrap();
        assert_eq!(self.delete(id, "exec"), code);
        code
    }
}

/// What comes out of a fifo, read in the background until nobody writes any more.
struct Log {
    text: std::sync::Arc<std::sync::Mutex<Vec<u8>>>,
}

impl Log {
    fn of(path: &Path) -> Log {
        let text = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        // Without waiting for a writer.
        let mut file = File::options().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path).unwrap();
        let (into, weak) = (text.clone(), std::sync::Arc::downgrade(&text));
        std::thread::spawn(move || {
            drop(into);
            let mut buffer = [0; 4096];
            while let Some(text) = weak.upgrade() {
                match file.read(&mut buffer) {
                    Ok(n) if n > 0 => text.lock().unwrap().extend_from_slice(&buffer[..n]),
                    _ => std::thread::sleep(Duration::from_millis(10)),
                }
            }
        });
        Log { text }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().unwrap()).into_owned()
    }
}

/// A process's output.
struct Fifos {
    stdout: PathBuf,
    stderr: PathBuf,
    out: Log,
    _err: Log,
}

impl Fifos {
    fn new(runtime: &Runtime, name: &str) -> Fifos {
        let make = |end: &str| {
            let path = runtime.file(&format!("{name}-{end}"));
            mkfifo(&path, Mode::S_IRWXU).unwrap();
            path
        };
        let (stdout, stderr) = (make("stdout"), make("stderr"));
        let (out, err) = (Log::of(&stdout), Log::of(&stderr));
        Fifos { stdout, stderr, out, _err: err }
    }
}

/// The fifo in the bundle that the shim logs to.
fn log(bundle: &Bundle) -> Log {
    let path = bundle.path().join("log");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    Log::of(&path)
}

#[test]
fn a_sandbox_lives_through_the_calls_of_runtime_vm() {
    let _leaks = Guard::new();
    let runtime = Runtime::new();
    let pinned = Pinned::new("crio-vm");
    let id = format!("vm-{}", std::process::id());
    let infra = sandbox(&runtime, &pinned, &id);
    let words = log(&infra);
    let (shim, _) = Shim::start(&id, infra.write(), &words);
    let io = Fifos::new(&runtime, "infra");
    assert!(shim.create(&id, &infra, &io) > 0);
    assert_eq!(shim.status(&id), "CREATED");
    shim.start_process(&id, "");
    assert_eq!(shim.status(&id), "RUNNING");
    let end = shim.wait(&id, "");
    shim.kill(&id, 9);
    let code = end.join().unwrap();
    assert!([137, 0].contains(&code), "{code}");
    assert_eq!(shim.status(&id), "STOPPED");
    shim.delete(&id, "");
    shim.shutdown(&id);
}

#[test]
fn a_pod_of_two_containers_has_one_shim() {
    let _leaks = Guard::new();
    let runtime = Runtime::new();
    let pinned = Pinned::new("crio-vmpod");
    let id = format!("vmpod-{}", std::process::id());
    let infra = sandbox(&runtime, &pinned, &id);
    let words = log(&infra);
    let (shim, address) = Shim::start(&id, infra.write(), &words);
    let io = Fifos::new(&runtime, "infra");
    shim.create(&id, &infra, &io);
    shim.start_process(&id, "");

    let mut one = container(&runtime, &pinned, "one", &id, "trap 'exit 5' TERM; echo one; while :; do sleep 0.1; done");
    let words_one = log(&one);
    // The second `start` finds the pod's shim.
    let (again, same) = Shim::start("one", one.write(), &words_one);
    assert_eq!(same, address);
    let io_one = Fifos::new(&runtime, "one");
    again.create("one", &one, &io_one);
    again.start_process("one", "");
    wait::until("words of the container", SOON, || (io_one.out.text() == "one\n").then_some(()));
    let io_exec = Fifos::new(&runtime, "exec");
    assert_eq!(again.exec("one", &mut one, &io_exec, "hostname; exit 3"), 3);
    wait::until("words of the exec", SOON, || (io_exec.out.text() == "pod\n").then_some(()));
    let end = again.wait("one", "");
    again.kill("one", 15);
    assert_eq!(end.join().unwrap(), 5);
    assert_eq!(again.delete("one", ""), 5);
    // The pod outlives what is said at the end of one of its containers.
    again.shutdown("one");
    assert_eq!(shim.status(&id), "RUNNING");
    let end = shim.wait(&id, "");
    shim.kill(&id, 9);
    end.join().unwrap();
    shim.delete(&id, "");
    shim.shutdown(&id);
}
