//! Promises of every driver that launchers rely on: the emulator, a GPU where there is one, and the GPU's driver over a fake
//! driver library (tests/fake_driver), which also shows that every failure is said and nothing is left behind.
#![cfg(any(feature = "cuda", feature = "emulator"))]

#[cfg(all(feature = "cuda", target_os = "linux"))]
mod fake;
#[cfg(all(feature = "cuda", target_os = "linux"))]
mod sums;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use im2sp::Result;
use im2sp::backend::cuda::driver::{DevicePtr, Driver, Launch, Stream};
use im2sp::backend::cuda::kernels::{CAST_FORWARD_F32_TO_BF16, CastParams};

/// Odd sizes, and sizes around those of the staging memory.
const SIZES: [usize; 8] = [1, 255, 257, 4096, (4 << 20) - 1, 4 << 20, (4 << 20) + 1, 13_000_001];

/// Goes through everything a driver does, and checks it where `computes`: the fake runs no kernel.
fn goes_through(stream: &Arc<dyn Stream>, computes: bool) -> Result<()> {
    copies(stream, &SIZES)?;
    many_small_writes(stream)?;
    words(stream)?;
    launches(stream, computes)?;
    captures(stream, computes)?;
    too_much(stream)?;
    assert!(excludes(&stream.driver(), &stream.driver(), SHORT), "a cooperative kernel at a time");
    streams(stream, computes)?;
    ordered(stream, computes)?;
    // Any thread may call.
    std::thread::scope(|scope| scope.spawn(|| copies(stream, &SIZES[..4])).join().expect("no panic"))
}

fn bytes(len: usize, seed: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + seed) as u8).collect()
}

fn read(stream: &Arc<dyn Stream>, from: DevicePtr, len: usize) -> Result<Vec<u8>> {
    let mut read = vec![0; len];
    // SAFETY: the tests read what they allocated.
    unsafe { stream.copy_to_host(from, &mut read)? };
    Ok(read)
}

/// Memory that is freed when the test ends, however it ends.
struct Memory<'a>(&'a Arc<dyn Stream>, DevicePtr);

impl<'a> Memory<'a> {
    fn new(stream: &'a Arc<dyn Stream>, bytes: usize) -> Result<Memory<'a>> {
        Ok(Memory(stream, stream.allocate(bytes)?))
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`.
        unsafe { self.0.free(self.1) };
    }
}

fn copies(stream: &Arc<dyn Stream>, sizes: &[usize]) -> Result<()> {
    let (free, total) = stream.driver().memory()?;
    assert!(free <= total && stream.properties().memory <= total);
    for &size in sizes {
        let (a, b) = (Memory::new(stream, size)?, Memory::new(stream, size)?);
        assert!(a.1.0 % 256 == 0 && a.1 != DevicePtr::NULL && a.1 != b.1);
        let mut sent = bytes(size, 1);
        // SAFETY: both are `size` bytes long.
        unsafe {
            stream.copy_to_device(a.1, &sent)?;
            // The call is over: what it was given may change.
            sent.fill(0);
            stream.copy(b.1, a.1, size)?;
            stream.memset(a.1, 7, size / 2)?;
        }
        assert!(read(stream, b.1, size)? == bytes(size, 1), "{size} bytes are not what was written");
        let filled = read(stream, a.1, size)?;
        assert!(filled[..size / 2].iter().all(|&b| b == 7) && filled[size / 2..] == bytes(size, 1)[size / 2..]);
        // SAFETY: as above.
        unsafe { stream.poison(a.1, size)? };
        assert!(read(stream, a.1, size)?.iter().all(|&b| b == 0xff));
    }
    let nothing = Memory::new(stream, 0)?;
    // SAFETY: nothing is touched.
    unsafe {
        stream.copy_to_device(nothing.1, &[])?;
        stream.copy(nothing.1, nothing.1, 0)?;
        stream.memset(nothing.1, 1, 0)?;
    }
    assert!(read(stream, nothing.1, 0)?.is_empty());
    stream.synchronize()
}

/// More than the staging memory holds, so that it is used again while copies are under way.
fn many_small_writes(stream: &Arc<dyn Stream>) -> Result<()> {
    const COUNT: usize = 40_000;
    let memory = Memory::new(stream, COUNT * 300)?;
    let expected = bytes(COUNT * 300, 3);
    for index in 0..COUNT {
        // SAFETY: inside of the memory.
        unsafe { stream.copy_to_device(memory.1.offset(index * 300), &expected[index * 300..][..300])? };
    }
    assert!(read(stream, memory.1, COUNT * 300)? == expected);
    Ok(())
}

/// Host memory that the device sees, and the end of work without waiting.
fn words(stream: &Arc<dyn Stream>) -> Result<()> {
    let words = stream.mapped_host(1000)?;
    assert!(words.device != DevicePtr::NULL && words.words().len() == 1000);
    assert!(words.words().iter().all(|word| word.load(Ordering::Relaxed) == 0));
    words.words()[999].store(7, Ordering::Relaxed);
    let memory = Memory::new(stream, 1 << 20)?;
    for byte in 0..10 {
        // SAFETY: inside of the memory.
        unsafe { stream.memset(memory.1, byte, 1 << 20)? };
    }
    while !stream.is_idle()? {
        std::thread::yield_now();
    }
    assert_eq!(words.words()[999].load(Ordering::Relaxed), 7);
    Ok(())
}

const VALUES: usize = 3000;

/// 1.0 and 2.0 in turn, as f32 and as bf16.
fn ones_and_twos() -> (Vec<u8>, Vec<u8>) {
    let value = |i: usize| (1 + i % 2) as f32;
    (
        (0..VALUES).flat_map(|i| value(i).to_le_bytes()).collect(),
        (0..VALUES).flat_map(|i| half::bf16::from_f32(value(i)).to_le_bytes()).collect(),
    )
}

fn cast(stream: &Arc<dyn Stream>, x: &Memory, y: &Memory, cooperative: bool) -> Result<()> {
    let params = CastParams { x: x.1, y: y.1, count: VALUES as i64 };
    let launch = Launch { cooperative, ..Launch::blocks(VALUES.div_ceil(1024)) };
    // SAFETY: the callers' memory holds so many values.
    unsafe { stream.launch(&CAST_FORWARD_F32_TO_BF16.info, launch, bytemuck::bytes_of(&params)) }
}

fn launches(stream: &Arc<dyn Stream>, computes: bool) -> Result<()> {
    let (x, y) = (Memory::new(stream, VALUES * 4)?, Memory::new(stream, VALUES * 2)?);
    let (narrow, wide) = {
        let (a, b) = ones_and_twos();
        (b, a)
    };
    let before = stream.record_event()?;
    for cooperative in [false, true] {
        // SAFETY: as long as the memory.
        unsafe {
            stream.copy_to_device(x.1, &wide)?;
            stream.poison(y.1, VALUES * 2)?;
        }
        cast(stream, &x, &y, cooperative)?;
        assert!(!computes || read(stream, y.1, VALUES * 2)? == narrow);
    }
    let after = stream.record_event()?;
    assert!(stream.elapsed(&before, &after)? >= 0.0);
    // SAFETY: nothing runs.
    let refused = unsafe {
        let launch = Launch::grid([1, 1_000_000, 1]);
        let launched = stream.launch(&CAST_FORWARD_F32_TO_BF16.info, launch, &[0; 24]);
        launched.and_then(|()| stream.synchronize())
    };
    let refused = refused.expect_err("a grid that no device takes").to_string();
    assert!(refused.contains("cast_forward_f32_to_bf16") && refused.contains("1000000"), "{refused}");
    stream.synchronize()
}

fn captures(stream: &Arc<dyn Stream>, computes: bool) -> Result<()> {
    let (x, y, z) =
        (Memory::new(stream, VALUES * 4)?, Memory::new(stream, VALUES * 2)?, Memory::new(stream, VALUES * 2)?);
    let (wide, narrow) = ones_and_twos();
    let early = Memory::new(stream, 1000)?;
    // SAFETY: as long as the memory, here and below.
    unsafe {
        stream.copy_to_device(x.1, &wide)?;
        stream.memset(z.1, 9, VALUES * 2)?;
    }
    assert!(stream.end_capture().is_err(), "nothing is being captured");
    stream.begin_capture()?;
    let recorded = (|| {
        // SAFETY: as above.
        unsafe {
            stream.memset(y.1, 5, VALUES * 2)?;
            cast(stream, &x, &y, false)?;
            stream.copy(z.1, y.1, VALUES * 2)
        }
    })();
    // What cannot be recorded says so, and freeing is put off.
    let refused = [
        stream.allocate(10).map(|_| ()),
        stream.synchronize(),
        stream.begin_capture(),
        read(stream, x.1, 1).map(|_| ()),
        // SAFETY: as above.
        unsafe { stream.copy_to_device(x.1, &[0]) },
    ];
    drop(early);
    let graph = stream.end_capture();
    recorded?;
    let graph = graph?;
    assert!(refused.iter().all(|refused| refused.is_err()), "{refused:?}");
    let before = read(stream, z.1, VALUES * 2)?;
    assert!(before.iter().all(|&byte| byte == 9), "recorded work was done");
    for _ in 0..2 {
        // SAFETY: the memory is still allocated.
        unsafe {
            stream.memset(z.1, 9, VALUES * 2)?;
            stream.replay(&graph)?;
        }
        let after = read(stream, z.1, VALUES * 2)?;
        assert!(if computes { after == narrow } else { after.iter().all(|&byte| byte == 5) });
    }
    Ok(())
}

/// Memory that does not exist is refused; later requests succeed.
fn too_much(stream: &Arc<dyn Stream>) -> Result<()> {
    let (_, total) = stream.driver().memory()?;
    let refused = stream.allocate(2 * total).expect_err("more than all");
    if !refused.to_string().contains("out of memory") {
        return Err(refused);
    }
    Memory::new(stream, 1000).map(|_| ())
}

/// Time in which a thread takes a lock that nobody holds, where it should not get it, and where it should.
const SHORT: Duration = Duration::from_millis(20);
#[cfg(all(feature = "cuda", target_os = "linux"))]
const LONG: Duration = Duration::from_secs(10);

/// Whether `other` waits for the lock that `driver` holds, for as long as `patience`.
fn excludes(driver: &Arc<dyn Driver>, other: &Arc<dyn Driver>, patience: Duration) -> bool {
    let (begun, taken) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let held = driver.lock_cooperative();
        scope.spawn(|| {
            begun.store(true, Ordering::Release);
            let _held = other.lock_cooperative();
            taken.store(true, Ordering::Release);
        });
        while !begun.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        let clock = Instant::now();
        while !taken.load(Ordering::Acquire) && clock.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
        let waited = !taken.load(Ordering::Acquire);
        drop(held);
        waited
    })
}

/// Two streams of work: what the one is at is nothing to the other, whatever threads call them.
fn streams(stream: &Arc<dyn Stream>, computes: bool) -> Result<()> {
    const BYTES: usize = 1 << 20;
    let other = stream.driver().new_stream()?;
    assert_eq!(other.properties().name, stream.properties().name);
    let (here, there) = (Memory::new(stream, BYTES)?, Memory::new(&other, BYTES)?);
    assert_ne!(here.1, there.1);
    // SAFETY: as long as the memory, here and below.
    unsafe { other.memset(there.1, 1, BYTES)? };
    other.synchronize()?;
    for byte in 0..10 {
        // SAFETY: as above.
        unsafe { stream.memset(here.1, byte, BYTES)? };
    }
    let _mark = stream.record_event()?;
    assert!(other.is_idle()?, "it waits for another's work");
    other.synchronize()?;
    assert!(computes || !stream.is_idle()?, "the other's end was taken for its own");
    assert!(read(&other, there.1, BYTES)?.iter().all(|&byte| byte == 1));
    assert!(read(stream, here.1, BYTES)?.iter().all(|&byte| byte == 9));

    // All that a capture forbids itself is free to others.
    stream.begin_capture()?;
    // SAFETY: as above.
    let recorded = unsafe { stream.memset(here.1, 5, BYTES) };
    let go = || -> Result<()> {
        copies(&other, &SIZES[..4])?;
        words(&other)?;
        launches(&other, computes)?;
        captures(&other, computes)
    };
    let beside = go().and_then(|()| std::thread::scope(|scope| scope.spawn(go).join().expect("no panic")));
    let graph = stream.end_capture();
    recorded?;
    beside?;
    let graph = graph?;
    assert!(read(stream, here.1, BYTES)?.iter().all(|&byte| byte == 9), "recorded work was done");
    // SAFETY: as above.
    unsafe { stream.replay(&graph)? };
    assert!(read(stream, here.1, BYTES)?.iter().all(|&byte| byte == 5));

    // At the same time.
    let repeat = |stream: &Arc<dyn Stream>| -> Result<()> {
        for _ in 0..5 {
            copies(stream, &SIZES[..5])?;
            launches(stream, computes)?;
            captures(stream, computes)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let second = scope.spawn(|| repeat(&other));
        repeat(stream).and(second.join().expect("no panic"))
    })
}

/// A stream that waits for an event of another starts its later work after it, and not after work that came later.
fn ordered(stream: &Arc<dyn Stream>, computes: bool) -> Result<()> {
    const BYTES: usize = 1 << 20;
    let other = stream.driver().new_stream()?;
    let (here, there) = (Memory::new(stream, BYTES)?, Memory::new(&other, BYTES)?);
    for waits in [false, true] {
        // SAFETY: as long as the memory, here and below.
        unsafe {
            stream.memset(here.1, 1, BYTES)?;
            stream.memset(here.1, 2, BYTES)?;
        }
        let event = stream.record_event()?;
        // SAFETY: as above.
        unsafe { stream.memset(here.1, 3, BYTES)? };
        if waits {
            other.wait_event(&event)?;
        }
        // SAFETY: as above.
        unsafe { other.memset(there.1, 4, BYTES)? };
        other.synchronize()?;
        // The fake does one thing more whenever it is asked: that is all there was left if the two before were waited for.
        assert!(computes || stream.is_idle()? == waits, "waits: {waits}");
        assert!(read(&other, there.1, BYTES)?.iter().all(|&byte| byte == 4));
        assert!(read(stream, here.1, BYTES)?.iter().all(|&byte| byte == 3));
    }
    Ok(())
}

#[cfg(feature = "emulator")]
#[test]
fn the_emulator() {
    use im2sp::backend::cuda::driver::emulator::EmulatedDriver;
    let emulator = Arc::new(EmulatedDriver::new(1 << 30));
    let stream = emulator.new_stream().expect("a stream");
    goes_through(&stream, true).expect("everything works");
    assert_eq!(emulator.in_use(), 0);

    // What goes wrong in one stream of work is told there.
    let other = emulator.new_stream().expect("a stream");
    let memory = Memory::new(&other, 100).expect("memory");
    let broken = Memory(&other, DevicePtr::NULL);
    cast(&other, &broken, &memory, false).expect("it was started");
    stream.synchronize().expect("nothing is wrong here");
    let fault = other.synchronize().expect_err("there is no such memory").to_string();
    assert!(fault.contains("cast_forward_f32_to_bf16"), "{fault}");
    assert_eq!(emulator.in_use(), 100, "every stream's memory counts");
    drop(memory);
    assert_eq!(emulator.in_use(), 0);
}

#[cfg(feature = "cuda")]
#[test]
fn a_gpu_if_there_is_one() {
    match im2sp::backend::cuda::driver::gpu::probe() {
        Err(error) => println!("left out: {error}"),
        Ok(devices) => {
            for (index, properties) in devices {
                println!("{properties:?}");
                let driver = im2sp::backend::cuda::driver::gpu::open(index).expect("it was found usable");
                let stream = driver.new_stream().expect("a stream");
                goes_through(&stream, true).expect("everything works");
            }
        }
    }
}
