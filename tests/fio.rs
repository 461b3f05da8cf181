//! fio reads a mount in all of its ways, and verifies the checksum in each block.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, clippy::print_stderr)]

mod common;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::ordeal::{Random, rounds, time};
use common::{Run, Site, number, run, settle};

/// The files: noise, data that compresses to a third, and a sparse file with 4 KiB in each 64 KiB. Blocks of 4 KiB each
/// have a checksum of their own, so that any larger ones can be read.
const FILES: &str = "
[noise]
rw=write
bs=1m
size=24m
[packed]
rw=write
bs=128k
size=24m
buffer_compress_percentage=70
[sparse]
rw=write:60k
bs=4k
size=64m
io_size=4m
";

/// Eight concurrent readers.
const READERS: [(&str, &str); 8] = [
    ("noise", "rw=read bs=4k ioengine=psync"),
    ("noise", "rw=randread bs=1m ioengine=psync"),
    ("noise", "rw=randread bs=64k ioengine=libaio direct=1 iodepth=8"),
    ("packed", "rw=read bs=1m ioengine=psync direct=1"),
    ("packed", "rw=randread bs=4k ioengine=mmap"),
    ("packed", "rw=read bs=128k ioengine=libaio direct=1 iodepth=4"),
    ("sparse", "rw=read:60k bs=4k ioengine=psync direct=1"),
    ("sparse", "rw=read:60k bs=4k ioengine=mmap"),
];

/// Runs these jobs of fio on files in a folder.
fn fio(site: &Site, folder: &Path, verify: &str, options: &[&str], jobs: &str) -> Run {
    let file = site.path().join("jobs");
    let global = format!("[global]\ndirectory={}\nverify={verify}\nverify_interval=4k\nthread\n", folder.display());
    std::fs::write(&file, format!("{global}{}\n{jobs}", options.join("\n"))).unwrap();
    let mut command = Command::new("fio");
    command.args(["--output-format=json", "--max-jobs=16"]).arg(file).current_dir(site.path());
    run(command)
}

/// Reads for this many seconds with all jobs. Returns the number of bytes that each read.
fn read(site: &Site, folder: &Path, verify: &str, random: &mut Random, seconds: u64) -> Vec<u64> {
    let jobs = READERS.iter().enumerate().map(|(at, (file, how))| {
        let how = how.replace(' ', "\n");
        format!("[{at}]\nfilename={file}\n{how}\nrandseed={}\n", random.below(1 << 31))
    });
    let jobs: String = jobs.collect();
    let runtime = format!("runtime={seconds}");
    // With random order, each pass of a file begins at another offset.
    let options = ["allow_file_create=0", "verify_fatal=1", "norandommap", "time_based", &runtime];
    let done = fio(site, folder, verify, &options, &jobs).ok();
    let report: serde_json::Value = serde_json::from_str(&done.stdout).unwrap_or_else(|e| panic!("{e}\n{done}"));
    let jobs = report["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), READERS.len(), "{done}");
    assert!(jobs.iter().all(|job| number(job, "error") == 0 && number(&job["read"], "total_ios") > 0), "{done}");
    jobs.iter().map(|job| number(&job["read"], "io_bytes")).collect()
}

#[test]
fn fio_reads_its_data_from_a_mount() {
    rounds("fio", 1, |mut random| {
        let verify = *random.choose(&["crc32c", "md5", "sha256", "xxhash"]);
        let site = Site::new();
        let layout = ["do_verify=0", "verify_state_save=0", "fallocate=none", "filename_format=$jobname"];
        fio(&site, &site.source(), verify, &layout, FILES).ok();
        settle();
        site.init();
        let chunk = *random.choose(&["--chunk-size=64KiB", "--chunk-size=512KiB", "--chunk-size=4MiB"]);
        let stored = number(&site.backup(&[chunk]).ok().json(), "stored_bytes");
        assert!(stored < 40 << 20, "{stored} bytes for noise of 24 MiB, 24 that compress, and 4 between holes");
        let mounted = site.mount(&["--cache-size", "16MiB"]);
        let (start, end) = (Instant::now(), time(Duration::from_secs(3), Duration::from_secs(60)));
        let mut bytes = vec![0; READERS.len()];
        // Several times: jobs with several concurrent reads go through a file once.
        while start.elapsed() < end {
            let seconds = (end - start.elapsed()).as_secs().clamp(1, 10);
            let more = read(&site, &mounted.latest(), verify, &mut random, seconds);
            bytes.iter_mut().zip(more).for_each(|(bytes, more)| *bytes += more);
        }
        for ((file, how), bytes) in READERS.iter().zip(bytes) {
            eprintln!("fio: {} MiB of {file}, {verify}, {chunk}: {how}", bytes >> 20);
        }
    });
}
