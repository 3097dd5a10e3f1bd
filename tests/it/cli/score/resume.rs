//! Interruptions, and going on from them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Files, args, outcrop, outcrop_with_input, score_file};
use crate::cli::{command, made, model, program, run, spawn};

/// As many lines, with ids, lists, bad lines and blank ones among them.
fn lines(count: usize) -> String {
    let line = |n: usize| match n % 11 {
        0 => {
            format!("{{\"id\": \"a{n}\", \"query\": \"what is {n}\", \"passages\": [\"panda\", \"{n}\"]}}\n")
        }
        1 => format!("bad line {n}\n\n"),
        _ => {
            let words = "the giant panda eats bamboo ".repeat(1 + n % 12);
            format!("{{\"query\": \"what is {n}\", \"passage\": \"{words}\"}}\n")
        }
    };
    (0..count).map(line).collect()
}

fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    PathBuf::from(format!("{}.{suffix}", path.display()))
}

/// Starts a run, and kills it when `part` has grown by `bytes`; whether it was killed before its end.
fn killed_after(args: &[String], part: &Path, bytes: u64) -> bool {
    let mut child = spawn(args);
    let wanted = length(part) + bytes;
    let started = Instant::now();
    loop {
        assert!(started.elapsed() < Duration::from_secs(120), "the run does not move");
        if let Some(status) = child.try_wait().unwrap() {
            assert!(matches!(status.code(), Some(0 | 1)), "{status}");
            return false;
        }
        if length(part) >= wanted {
            child.kill().unwrap();
            child.wait().unwrap();
            return true;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// Killed again and again, at any place, the run ends with the same bytes and the same status; before that its output has not its name.
#[test]
fn a_run_that_was_killed_goes_on() {
    let files = Files::new();
    let text = lines(2000);
    let input = files.write("in.jsonl", &text);
    let whole = files.path("whole.jsonl");
    assert_eq!(outcrop(args(&input, &whole, &[])).status, Some(1));
    let whole = fs::read(&whole).unwrap();

    let output = files.path("out.jsonl");
    let part = with_suffix(&output, "part");
    let every_block = ["--resume", "--checkpoint-seconds", "0", "--threads", "1"];
    let again = args(&input, &output, &every_block);
    let (mut kills, mut grown) = (0, 0);
    while killed_after(&again, &part, 1 + kills * 9973 % 30_000) {
        kills += 1;
        assert!(!output.exists());
        let checkpoint: Option<Value> = fs::read(with_suffix(&output, "checkpoint"))
            .ok()
            .map(|text| serde_json::from_slice(&text).unwrap());
        let kept = checkpoint.map_or(0, |checkpoint| checkpoint["output_bytes"].as_u64().unwrap());
        assert!(kept >= grown && length(&part) >= kept, "{kept} bytes after {grown}");
        assert!(whole.starts_with(&fs::read(&part).unwrap()[..usize::try_from(kept).unwrap()]));
        grown = kept;
        // What stands behind the checkpoint is of no importance.
        if kills % 3 == 0 {
            let mut kept = fs::read(&part).unwrap();
            kept.extend(b"{\"torn");
            fs::write(&part, kept).unwrap();
        }
    }
    assert!(kills >= 5 && grown > 0, "{kills} kills, {grown} bytes kept");
    assert!(fs::read(&output).unwrap() == whole, "the output after {kills} kills differs");
    assert_eq!(files.names(), ["in.jsonl", "out.jsonl", "whole.jsonl"]);
    // There is nothing to go on from: it starts.
    let ran = outcrop(&again);
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    assert!(fs::read(&output).unwrap() == whole);
}

/// A run that was interrupted, and what it left: input, output, part and checkpoint.
fn interrupted(files: &Files) -> (PathBuf, PathBuf, PathBuf, PathBuf) {
    let input = files.write("in.jsonl", lines(2000));
    let output = files.path("out.jsonl");
    let (part, checkpoint) = (with_suffix(&output, "part"), with_suffix(&output, "checkpoint"));
    assert!(killed_after(&args(&input, &output, &["--checkpoint-seconds", "0"]), &part, 20_000));
    assert!(checkpoint.exists());
    (input, output, part, checkpoint)
}

/// Each difference is named, nothing is touched, and without `--resume` the run starts over.
#[test]
fn another_run_is_refused() {
    let files = Files::new();
    let (input, output, part, checkpoint) = interrupted(&files);
    let before = (fs::read(&part).unwrap(), fs::read(&checkpoint).unwrap());
    for (extra, words) in [
        (&["--max-length", "99"][..], "--max-length was not given and is 99"),
        (&["--normalize"], "--normalize was false and is true"),
        (&["--shard", "0/2"], "--shard was not given and is \"0/2\""),
        (&["--dtype", "f16"], "--dtype was \"auto\" and is \"f16\""),
    ] {
        let extra: Vec<&str> = extra.iter().chain(&["--resume"]).copied().collect();
        outcrop(args(&input, &output, &extra)).refused(&[
            "out.jsonl.checkpoint",
            words,
            "leave out --resume",
        ]);
    }
    let mut other = args(&input, &output, &["--resume"]);
    let other_model = made("xlmr");
    let place = other.iter().position(|arg| *arg == model("xlmr_base")).unwrap();
    other[place] = other_model.model.to_str().unwrap().to_owned();
    outcrop(&other).refused(&["the model's files have changed"]);
    // The same length, other words.
    let text = fs::read_to_string(&input).unwrap();
    files.write("in.jsonl", text.replace("bamboo", "rodent"));
    outcrop(args(&input, &output, &["--resume"])).refused(&["the input has changed"]);
    assert!((fs::read(&part).unwrap(), fs::read(&checkpoint).unwrap()) == before);

    files.write("in.jsonl", "{\"query\": \"q\", \"passage\": \"p\"}\n");
    score_file(&input, &output, &[]);
    assert_eq!(fs::read_to_string(&output).unwrap().lines().count(), 1);
    assert_eq!(files.names(), ["in.jsonl", "out.jsonl"]);
}

/// A copy of model and input, under other names and dates, is the same; threads and batch sizes do not matter.
#[test]
fn a_copy_goes_on() {
    let files = Files::new();
    let (input, output, part, _) = interrupted(&files);
    let kept = fs::read(&part).unwrap();
    let copied = files.path("copied.jsonl");
    fs::copy(&input, &copied).unwrap();
    let model_copy = files.path("model");
    fs::create_dir(&model_copy).unwrap();
    for entry in fs::read_dir(model("xlmr_base")).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), model_copy.join(entry.file_name())).unwrap();
    }
    let mut again = args(&copied, &output, &["--resume", "--threads", "1", "--batch-tokens", "700"]);
    let place = again.iter().position(|arg| *arg == model("xlmr_base")).unwrap();
    again[place] = model_copy.to_str().unwrap().to_owned();
    let ran = outcrop(again);
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    let resumed = fs::read(&output).unwrap();
    assert!(resumed.len() > kept.len());
    outcrop(args(&input, &files.path("whole.jsonl"), &[]));
    assert!(resumed == fs::read(files.path("whole.jsonl")).unwrap());
}

/// Killed when all was computed: the output has its name already, or not yet.
#[test]
fn the_last_steps_are_taken_again() {
    let files = Files::new();
    let (input, output, part, checkpoint) = interrupted(&files);
    let mut state: Value = serde_json::from_slice(&fs::read(&checkpoint).unwrap()).unwrap();
    outcrop(args(&input, &files.path("whole.jsonl"), &[]));
    let whole = fs::read(files.path("whole.jsonl")).unwrap();
    state["input"]["offset"] = json!(length(&input));
    state["output_bytes"] = json!(whole.len());
    state["complete"] = json!(true);
    for named in [false, true] {
        fs::write(&checkpoint, state.to_string()).unwrap();
        fs::remove_file(&part).ok();
        fs::remove_file(&output).ok();
        fs::write(if named { &output } else { &part }, &whole).unwrap();
        let ran = outcrop(args(&input, &output, &["--resume"]));
        // Bad lines of the runs before count.
        assert_eq!(ran.status, Some(1), "{}", ran.stderr);
        assert!(fs::read(&output).unwrap() == whole);
        assert_eq!(files.names(), ["in.jsonl", "out.jsonl", "whole.jsonl"]);
    }
}

#[test]
fn what_was_changed_by_hand_is_refused() {
    let files = Files::new();
    let (input, output, part, checkpoint) = interrupted(&files);
    let resume = args(&input, &output, &["--resume"]);
    fs::write(&part, "short").unwrap();
    outcrop(&resume).refused(&["out.jsonl.part has 5 bytes", "leave out --resume"]);
    fs::write(&checkpoint, "{}").unwrap();
    outcrop(&resume).refused(&[
        "out.jsonl.checkpoint is no checkpoint",
        "missing field",
        "leave out --resume",
    ]);
}

/// A run that cannot be gone on from leaves no checkpoint of the run before.
#[test]
fn a_checkpoint_does_not_outlive_its_part() {
    let files = Files::new();
    let (_, output, _, checkpoint) = interrupted(&files);
    let ran = outcrop_with_input(args(Path::new("-"), &output, &[]), b"bad line\n");
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    assert!(output.exists() && !checkpoint.exists());
}

#[test]
fn only_files_can_be_gone_on_from() {
    let files = Files::new();
    let input = files.write("in.jsonl", lines(1));
    let model = model("xlmr_base");
    let output = files.path("out.jsonl");
    let words = ["--resume needs an input and an output that are files"];
    let no_output = ["score", "--model", &model, "--input", input.to_str().unwrap(), "--resume"];
    outcrop(no_output).refused(&words);
    outcrop(args(Path::new("-"), &output, &["--resume"])).refused(&words);
    assert_eq!(files.names(), ["in.jsonl"]);
}

/// Two runs that would write over each other.
#[test]
fn an_output_has_one_writer() {
    let files = Files::new();
    let output = files.path("out.jsonl");
    // Its input is open: it waits.
    let mut first = spawn(args(Path::new("-"), &output, &[]));
    let started = Instant::now();
    while !with_suffix(&output, "part").exists() {
        assert!(started.elapsed() < Duration::from_secs(60));
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(100));
    let input = files.write("in.jsonl", lines(1));
    outcrop(args(&input, &output, &[]))
        .refused(&["is being written by another process", "each shard needs its own"]);
    first.kill().unwrap();
    first.wait().unwrap();
    score_file(&input, &output, &[]);
}

/// The disk is full: the error says where, why and what to do; what was done is kept, and gone on from.
///
/// A limit on the length of files stands for the disk: the system refuses to write in the same place, with another number.
#[test]
#[cfg(unix)]
fn a_full_disk_costs_nothing() {
    let files = Files::new();
    let input = files.write("in.jsonl", lines(2000));
    let output = files.path("out.jsonl");
    let again = args(&input, &output, &["--resume", "--checkpoint-seconds", "0"]);
    // 64 blocks of 512 bytes, or of 1024; a signal that is ignored here is ignored there.
    let limited = "trap '' XFSZ; ulimit -f 64; exec \"$0\" \"$@\"";
    let mut shell = Command::new("sh");
    shell.args(["-c", limited]).arg(program()).args(&again).env("OUTCROP_DEVICE", "cpu");
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    run(&mut shell, b"").refused(&[
        "out.jsonl.part",
        "File too large",
        "the same command with --resume goes on",
    ]);
    assert!(!output.exists() && length(&with_suffix(&output, "part")) > 0);
    assert!(with_suffix(&output, "checkpoint").exists());
    let ran = outcrop(&again);
    assert_eq!(ran.status, Some(1), "{}", ran.stderr);
    outcrop(args(&input, &files.path("whole.jsonl"), &[]));
    assert!(fs::read(&output).unwrap() == fs::read(files.path("whole.jsonl")).unwrap());
}

/// A device that is always full, written in place.
#[test]
#[cfg(target_os = "linux")]
fn a_full_device_is_an_error() {
    let files = Files::new();
    let input = files.write("in.jsonl", lines(30));
    outcrop(args(&input, Path::new("/dev/full"), &[]))
        .refused(&["cannot write /dev/full", "No space left on device"]);
}

/// A small file system of its own that fills up, where the system lets anyone mount one.
#[test]
#[cfg(target_os = "linux")]
fn a_full_file_system_costs_nothing() {
    let files = Files::new();
    let input = files.write("in.jsonl", lines(2000));
    fs::create_dir(files.path("small")).unwrap();
    let output = files.path("small/out.jsonl");
    let again = args(&input, &output, &["--resume", "--checkpoint-seconds", "0"]);
    let script = "mount -t tmpfs -o size=96k small \"$1\" || exit 77; shift\n\
        \"$@\"; echo \"first $?\"; ls \"$DIR\"\n\
        mount -o remount,size=10m \"$DIR\"; \"$@\"; echo \"second $?\"; cp \"$DIR\"/out.jsonl \"$DIR\"/..";
    let mut shell = Command::new("unshare");
    shell.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
    shell.arg(files.path("small")).arg(program()).args(&again);
    shell.env("OUTCROP_DEVICE", "cpu").env("DIR", files.path("small"));
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    if !Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "true"])
        .status()
        .is_ok_and(|s| s.success())
    {
        eprintln!("SKIPPED: no file system can be mounted here");
        return;
    }
    let ran = run(&mut shell, b"");
    if ran.status == Some(77) {
        eprintln!("SKIPPED: no file system can be mounted here: {}", ran.stderr);
        return;
    }
    assert_eq!(ran.stdout, "first 2\nout.jsonl.checkpoint\nout.jsonl.part\nsecond 1\n", "{}", ran.stderr);
    assert!(ran.stderr.contains("No space left on device"), "{}", ran.stderr);
    outcrop(args(&input, &files.path("whole.jsonl"), &[]));
    assert!(fs::read(files.path("out.jsonl")).unwrap() == fs::read(files.path("whole.jsonl")).unwrap());
}

/// A link stays a link, and who may read the output does not change.
#[test]
#[cfg(unix)]
fn what_is_replaced_keeps_its_place() {
    use std::os::unix::fs::PermissionsExt;
    let files = Files::new();
    let input = files.write("in.jsonl", "{\"query\": \"q\", \"passage\": \"p\"}\n");
    let secret = files.write("secret.jsonl", "an older result");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let link = files.path("link.jsonl");
    std::os::unix::fs::symlink("secret.jsonl", &link).unwrap();
    score_file(&input, &link, &[]);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(fs::read_to_string(&secret).unwrap().lines().count(), 1);
    assert_eq!(files.names(), ["in.jsonl", "link.jsonl", "secret.jsonl"]);
    // The same, started by hand in the directory itself.
    let mut here = command(args(Path::new("in.jsonl"), Path::new("out.jsonl"), &[]));
    assert_eq!(run(here.current_dir(files.path(".")), b"").status, Some(0));
    assert!(files.path("out.jsonl").exists());
}
