//! The processes of a run, one for each device: who they are, by the environment of torchrun, SLURM or mpirun, and sums over them.
//!
//! Rank 0 listens at the address that all know; the others connect. A sum is added in the order of ranks, so its bits do not
//! depend on who comes first. A connection that ends is a rank that died: whoever notices fails and thereby tells the rest.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::backend::Peers;
use crate::{Error, Result};

/// Time for all ranks to come.
const START: Duration = Duration::from_secs(300);
/// Longest silence of a living rank: a validation or a checkpoint of another.
const SILENCE: Duration = Duration::from_secs(3600);
const RETRY: Duration = Duration::from_millis(100);
const MAGIC: [u8; 8] = *b"im2sp-r1";

/// Place of a process among all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number, from 0.
    pub rank: usize,
    /// Processes in all.
    pub count: usize,
    /// Its number among those of its machine: its device.
    pub local: usize,
    /// Host and port at which rank 0 listens.
    pub address: String,
}

impl Place {
    /// The place that the environment `get` tells of; `None` for a process that was started alone.
    ///
    /// # Errors
    /// If a variable is missing or no number.
    pub fn of(get: impl Fn(&str) -> Option<String>) -> Result<Option<Place>> {
        const KINDS: [[&str; 3]; 4] = [
            ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
            ["OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"],
            ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"],
            ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"],
        ];
        let Some(kind) = KINDS.iter().find(|[rank, count, _]| get(rank).is_some() && get(count).is_some()) else {
            return Ok(None);
        };
        let number = |name: &str| {
            let text = get(name).ok_or_else(|| wrong(format!("the environment lacks {name}")))?;
            text.parse::<usize>().map_err(|_| wrong(format!("{name} is {text:?}, expected a number")))
        };
        let (rank, count) = (number(kind[0])?, number(kind[1])?);
        if count <= 1 {
            return Ok(None);
        }
        if rank >= count {
            return Err(wrong(format!("{} is {rank}, but there are {count} processes", kind[0])));
        }
        let host = get("MASTER_ADDR").or_else(|| get("SLURM_LAUNCH_NODE_IPADDR"));
        let host = host.ok_or_else(|| {
            wrong(
                "the environment lacks MASTER_ADDR: set it to the machine of rank 0 (and MASTER_PORT to a free port)"
                    .into(),
            )
        })?;
        // torchrun listens at the port itself.
        let port = if get("MASTER_PORT").is_some() { number("MASTER_PORT")? + 1 } else { 29_501 };
        Ok(Some(Place { rank, count, local: number(kind[2]).unwrap_or(rank), address: format!("{host}:{port}") }))
    }
}

fn wrong(problem: String) -> Error {
    Error::Device { device: "ranks".into(), problem }
}

/// Connections of a process to the others.
pub struct Ranks {
    rank: usize,
    count: usize,
    /// The others in their order, if this is rank 0; else rank 0.
    peers: Vec<TcpStream>,
}

impl Ranks {
    /// A process alone.
    pub fn alone() -> Ranks {
        Ranks { rank: 0, count: 1, peers: Vec::new() }
    }

    /// Connects the processes of a run. `digest` has to be the same in all: what decides about results.
    ///
    /// # Errors
    /// If not all come in time, or one runs another configuration.
    pub fn connect(place: &Place, digest: u64) -> Result<Ranks> {
        let deadline = Instant::now() + START;
        let peers =
            if place.rank == 0 { accept(place, digest, deadline)? } else { vec![join(place, digest, deadline)?] };
        for peer in &peers {
            let set = peer.set_nodelay(true).and_then(|()| peer.set_read_timeout(Some(SILENCE)));
            set.map_err(|error| wrong(format!("{}: {error}", place.address)))?;
        }
        Ok(Ranks { rank: place.rank, count: place.count, peers })
    }

    /// Number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Processes in all.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Adds `values` of all ranks, in the order of ranks: each gets the sums.
    ///
    /// # Errors
    /// If a rank has ended.
    pub fn sum<T: Number>(&mut self, values: &mut [T]) -> Result<()> {
        if self.count == 1 {
            return Ok(());
        }
        let Ranks { rank, peers, .. } = self;
        let lost = |other: usize| move |error: std::io::Error| gone(other, &error);
        if *rank > 0 {
            peers[0].write_all(bytemuck::cast_slice(values)).map_err(lost(0))?;
            return peers[0].read_exact(bytemuck::cast_slice_mut(values)).map_err(lost(0));
        }
        let mut others = vec![T::zeroed(); values.len()];
        for (n, peer) in peers.iter_mut().enumerate() {
            peer.read_exact(bytemuck::cast_slice_mut(&mut others)).map_err(lost(n + 1))?;
            values.iter_mut().zip(&others).for_each(|(sum, value)| sum.add(*value));
        }
        for (n, peer) in peers.iter_mut().enumerate() {
            peer.write_all(bytemuck::cast_slice(values)).map_err(lost(n + 1))?;
        }
        Ok(())
    }
}

impl Peers for Ranks {
    fn rank(&self) -> usize {
        self.rank
    }

    fn count(&self) -> usize {
        self.count
    }

    fn share(&mut self, bytes: &mut [u8]) -> Result<()> {
        let own = self.rank == 0;
        let mut values: Vec<f32> = bytes.iter().map(|&byte| if own { f32::from(byte) } else { 0.0 }).collect();
        self.sum(&mut values)?;
        bytes.iter_mut().zip(values).for_each(|(byte, value)| *byte = value as u8);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        for (n, peer) in self.peers.iter().enumerate() {
            let other = if self.rank == 0 { n + 1 } else { 0 };
            // Bytes that wait are of the next sum.
            let looked = peer.set_nonblocking(true).and_then(|()| peer.peek(&mut [0]));
            peer.set_nonblocking(false).map_err(|error| gone(other, &error))?;
            match looked {
                Ok(0) => return Err(gone(other, &ErrorKind::UnexpectedEof.into())),
                Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(gone(other, &error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A number that ranks add.
pub trait Number: bytemuck::Pod {
    /// `self += other`.
    fn add(&mut self, other: Self);
}

impl Number for f32 {
    fn add(&mut self, other: f32) {
        *self += other;
    }
}

impl Number for f64 {
    fn add(&mut self, other: f64) {
        *self += other;
    }
}

fn gone(rank: usize, error: &std::io::Error) -> Error {
    let what = match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("has said nothing for {} s", SILENCE.as_secs()),
        _ => format!("has ended ({error}); its own output says why"),
    };
    wrong(format!("rank {rank} {what}: start the run again with --resume, with as many processes as you like"))
}

/// Bytes of a greeting: the magic, rank, number of ranks, digest.
fn greeting(rank: usize, count: usize, digest: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&MAGIC);
    for (part, value) in bytes[8..].chunks_exact_mut(8).zip([rank as u64, count as u64, digest]) {
        part.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// The connections of rank 0, by rank.
fn accept(place: &Place, digest: u64, deadline: Instant) -> Result<Vec<TcpStream>> {
    let port = place.address.rsplit_once(':').map_or("", |(_, port)| port);
    let fail =
        |error: std::io::Error| wrong(format!("cannot listen at port {port}: {error}: set MASTER_PORT to another"));
    let listener = TcpListener::bind(format!("0.0.0.0:{port}")).map_err(fail)?;
    listener.set_nonblocking(true).map_err(fail)?;
    let mut peers: Vec<Option<TcpStream>> = (1..place.count).map(|_| None).collect();
    while peers.iter().any(Option::is_none) {
        let missing = || (1..place.count).filter(|&rank| peers[rank - 1].is_none()).map(|rank| rank.to_string());
        let mut peer = match listener.accept() {
            Ok((peer, _)) => peer,
            Err(error) if error.kind() != ErrorKind::WouldBlock => return Err(fail(error)),
            Err(_) if Instant::now() > deadline => {
                let missing: Vec<String> = missing().collect();
                return Err(wrong(format!(
                    "rank {} did not come within {} s: start all with torchrun, srun or mpirun; to train alone, unset the \
                     launcher's variables (RANK, SLURM_PROCID)",
                    missing.join(", "),
                    START.as_secs()
                )));
            }
            Err(_) => {
                std::thread::sleep(RETRY);
                continue;
            }
        };
        let mut greeted = [0; 32];
        let read = peer.set_nonblocking(false).and_then(|()| peer.set_read_timeout(Some(Duration::from_secs(10))));
        // Something else may try the port.
        if read.and_then(|()| peer.read_exact(&mut greeted)).is_err() || greeted[..8] != MAGIC {
            continue;
        }
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| greeted[at + i]));
        let rank = number(8) as usize;
        let fits = number(16) == place.count as u64 && number(24) == digest;
        if !fits || !(1..place.count).contains(&rank) || peers[rank - 1].is_some() {
            let problem = format!("rank {rank} runs another configuration or number of processes: start all alike");
            return Err(wrong(problem));
        }
        peer.write_all(&MAGIC).map_err(|error| gone(rank, &error))?;
        peers[rank - 1] = Some(peer);
    }
    Ok(peers.into_iter().flatten().collect())
}

/// The connection of another rank to rank 0.
fn join(place: &Place, digest: u64, deadline: Instant) -> Result<TcpStream> {
    let connect = || {
        // Rank 0 listens on IPv4.
        let address = place.address.to_socket_addrs()?.find(|address| address.is_ipv4());
        let address = address.ok_or(ErrorKind::AddrNotAvailable)?;
        TcpStream::connect_timeout(&address, Duration::from_secs(10))
    };
    let mut peer = loop {
        match connect() {
            Ok(peer) => break peer,
            Err(error) if Instant::now() > deadline => {
                return Err(wrong(format!("cannot reach rank 0 at {}: {error}", place.address)));
            }
            Err(_) => std::thread::sleep(RETRY),
        }
    };
    let mut answer = [0; 8];
    let refused = |error: std::io::Error| {
        wrong(format!("rank 0 at {} refused this rank ({error}); its own output says why", place.address))
    };
    peer.set_read_timeout(Some(START)).map_err(refused)?;
    peer.write_all(&greeting(place.rank, place.count, digest)).map_err(refused)?;
    peer.read_exact(&mut answer).map_err(refused)?;
    Ok(peer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
    }

    #[test]
    fn places_come_from_every_launcher() -> Result<()> {
        let of = |pairs: &[(&str, &str)]| Place::of(environment(pairs));
        assert_eq!(of(&[])?, None);
        assert_eq!(of(&[("RANK", "0"), ("WORLD_SIZE", "1")])?, None);
        let torchrun =
            [("RANK", "3"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "7")];
        let place = Place { rank: 3, count: 4, local: 1, address: "a:8".into() };
        assert_eq!(of(&torchrun)?, Some(place));
        let slurm = [
            ("SLURM_PROCID", "1"),
            ("SLURM_NTASKS", "2"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.1"),
        ];
        assert_eq!(of(&slurm)?.map(|place| place.address), Some("10.0.0.1:29501".into()));
        let mpi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "2")];
        assert!(of(&mpi).unwrap_err().to_string().contains("MASTER_ADDR"));
        let wrong = [("RANK", "x"), ("WORLD_SIZE", "2")];
        assert!(of(&wrong).unwrap_err().to_string().contains("RANK"));
        Ok(())
    }

    /// A port that was free a moment ago.
    fn address() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address").to_string()
    }

    fn start(count: usize, digests: &[u64]) -> Vec<Result<Ranks>> {
        let address = address();
        let threads: Vec<_> = (0..count)
            .map(|rank| {
                let place = Place { rank, count, local: rank, address: address.clone() };
                let digest = digests[rank];
                std::thread::spawn(move || Ranks::connect(&place, digest))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    }

    #[test]
    fn all_ranks_get_the_same_sums() -> Result<()> {
        let ranks = start(3, &[9, 9, 9]).into_iter().collect::<Result<Vec<_>>>()?;
        let threads: Vec<_> = ranks
            .into_iter()
            .map(|mut ranks| {
                std::thread::spawn(move || {
                    let mut values: Vec<f32> =
                        (0..1000).map(|n| (n as f32 + 0.1) * (ranks.rank() + 1) as f32).collect();
                    let mut counts = [ranks.rank() as f64, 1.0];
                    ranks.sum(&mut values).and_then(|()| ranks.sum(&mut counts)).map(|()| (values, counts))
                })
            })
            .collect();
        let sums: Vec<_> = threads.into_iter().map(|t| t.join().expect("no panic")).collect::<Result<_>>()?;
        let expected: Vec<f32> = (0..1000).map(|n| n as f32 + 0.1).map(|v| v + v * 2.0 + v * 3.0).collect();
        assert!(sums.iter().all(|(values, counts)| *values == expected && *counts == [3.0, 3.0]));
        Ok(())
    }

    #[test]
    fn a_rank_that_dies_ends_the_others() {
        let mut ranks: Vec<_> = start(3, &[1, 1, 1]).into_iter().flatten().collect();
        drop(ranks.remove(1));
        let threads: Vec<_> =
            ranks.into_iter().map(|mut ranks| std::thread::spawn(move || ranks.sum(&mut [1.0f32]))).collect();
        let errors: Vec<String> =
            threads.into_iter().map(|t| t.join().expect("no panic").unwrap_err().to_string()).collect();
        assert!(errors[0].contains("rank 1 has ended") && errors[0].contains("--resume"), "{errors:?}");
        assert!(errors[1].contains("rank 0 has ended"), "{errors:?}");
    }

    #[test]
    fn rank_0_shares_and_an_end_is_seen_without_waiting() -> Result<()> {
        let mut ranks = start(2, &[1, 1]).into_iter().collect::<Result<Vec<_>>>()?;
        let bytes: Vec<u8> = (0..128).map(|n| n * 2 + 1).collect();
        let (mut own, mut other) = (bytes.clone(), vec![7; 128]);
        let (first, second) = ranks.split_at_mut(1);
        std::thread::scope(|scope| {
            let shared = scope.spawn(|| second[0].share(&mut other));
            first[0].share(&mut own).and(shared.join().expect("no panic"))
        })?;
        assert!(own == bytes && other == bytes);
        assert!(ranks.iter().all(|ranks| ranks.check().is_ok()));
        drop(ranks.remove(1));
        let ended = || loop {
            // The end may still be on its way.
            match ranks[0].check() {
                Ok(()) => std::thread::sleep(Duration::from_millis(1)),
                Err(error) => break error.to_string(),
            }
        };
        assert!(ended().contains("rank 1 has ended"), "{}", ended());
        Ok(())
    }

    #[test]
    fn another_configuration_is_refused() {
        let outcomes = start(2, &[1, 2]);
        let errors: Vec<String> = outcomes.into_iter().filter_map(|o| o.err()).map(|e| e.to_string()).collect();
        assert!(errors.len() == 2 && errors[0].contains("another configuration"), "{errors:?}");
    }
}
