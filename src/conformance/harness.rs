//! Runs cases on a backend and collects how they went. An error or a panic of one case is its outcome, and the next case runs;
//! only a device that does not answer any more ends the run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use super::{Case, Expected, Inputs, OpCheck, Outcome, Output, Prepared, Size, TestBackend, Verdict, ops};
use crate::cost::Cost;
use crate::error::panic_message;
use crate::{Error, Result};

/// A case that can be timed.
pub struct Timing<'t> {
    /// The operation.
    pub op: &'static str,
    /// The case.
    pub case: &'t Case,
    /// Seconds of one run on the device's own clock.
    pub run: &'t dyn Fn() -> Result<f64>,
}

/// Times a case as often as it wants to, and returns seconds.
pub type Timer<'a> = &'a mut dyn FnMut(Timing<'_>) -> Result<f64>;

/// Something that happens in a harness.
pub enum Progress<'p> {
    /// A case begins.
    Case(&'static str, &'p Case),
    /// It has ended.
    Outcome(&'p Outcome),
}

/// Callback for progress.
pub type Observer<'a> = &'a mut dyn FnMut(Progress<'_>);

/// State of harnesses that work through one table together, each in a thread and on a stream of its own: every case is run by
/// the first that comes to it.
#[derive(Default)]
pub struct Shared {
    /// Index of the next case.
    next: AtomicUsize,
    /// Held by every case that uses the device, and by one alone while it is timed.
    device: RwLock<()>,
}

/// Runs cases on a backend.
pub struct Harness<'a, B: TestBackend> {
    /// The backend under test.
    pub backend: &'a B,
    /// The outcomes so far.
    pub outcomes: Vec<Outcome>,
    max_size: Size,
    compared: bool,
    timer: Option<Timer<'a>>,
    /// Cases of at least this size are timed.
    min_timed: Size,
    flush: Option<B::Tensor>,
    observer: Option<Observer<'a>>,
    op: &'static str,
    /// Cases so far, those of other harnesses too.
    index: usize,
    shared: Option<&'a Shared>,
}

impl<'a, B: TestBackend> Harness<'a, B> {
    /// A harness for cases up to this size, which compares results where the backend is not the CPU form itself.
    pub fn new(backend: &'a B, max_size: Size) -> Harness<'a, B> {
        Harness {
            backend,
            outcomes: Vec::new(),
            max_size,
            compared: B::COMPARED,
            timer: None,
            min_timed: Size::Real,
            flush: None,
            observer: None,
            op: "",
            index: 0,
            shared: None,
        }
    }

    /// Also hands every case of at least `min_size` to `timer`, each run after [`TestBackend::flush_l2`] of `flush`.
    pub fn timed(self, min_size: Size, flush: Option<B::Tensor>, timer: Timer<'a>) -> Harness<'a, B> {
        Harness { timer: Some(timer), min_timed: min_size, flush, ..self }
    }

    /// Leaves out the comparison, and the cases that are not timed with it.
    pub fn not_compared(self) -> Harness<'a, B> {
        Harness { compared: false, ..self }
    }

    /// Also calls `observer` with each case and outcome.
    pub fn observed(self, observer: Observer<'a>) -> Harness<'a, B> {
        Harness { observer: Some(observer), ..self }
    }

    /// Leaves out the cases that other harnesses with the same `shared` have come to first. All run the same operations; `index`
    /// is the number of cases of the tables before this one.
    pub fn sharing(self, shared: &'a Shared, index: usize) -> Harness<'a, B> {
        Harness { shared: Some(shared), index, ..self }
    }

    /// Index of the next case.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Runs every case of the operations that `wanted` names.
    ///
    /// # Errors
    /// If the device is lost; the outcomes so far stay.
    pub fn run(&mut self, wanted: impl Fn(&str) -> bool) -> Result<()> {
        ops::table().into_iter().filter(|(op, _)| wanted(op)).try_for_each(|(op, check)| self.operation(op, check))
    }

    /// Runs every case of one operation.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn operation(&mut self, op: &'static str, check: OpCheck<B>) -> Result<()> {
        self.op = op;
        check(self)
    }

    /// Runs a case, if its size is wanted: puts its inputs on the backend with `prepare`, compares and times.
    ///
    /// # Errors
    /// If the device is lost.
    pub fn case<'c>(&mut self, case: Case, prepare: impl FnOnce(&Inputs) -> Result<Prepared<'c, B>>) -> Result<()> {
        if !self.wants(&case) || !self.takes_next() {
            return Ok(());
        }
        self.report(Progress::Case(self.op, &case));
        let inputs = Inputs::new(self.op, &case.name);
        // Inputs, too, lie in memory of just their size.
        self.backend.poison(true);
        let attempt = catch_unwind(AssertUnwindSafe(|| {
            let prepared = using(self.shared, || prepare(&inputs))?;
            self.attempt(&case, prepared)
        }));
        self.backend.poison(false);
        let problem = match attempt {
            Ok(Ok(done)) => return self.note(case, done),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => format!("panicked: {}", panic_message(&*panic)),
        };
        self.note(case, (Verdict::Failed(problem.clone()), None))?;
        self.backend.alive().map_err(|error| Error::Device {
            device: self.backend.name(),
            problem: format!("does not answer any more after {}: {problem} ({error})", self.op),
        })
    }

    fn wants(&self, case: &Case) -> bool {
        case.size <= self.max_size && (self.compared || self.times(case))
    }

    /// Counts a case; true if it is left to this harness.
    fn takes_next(&mut self) -> bool {
        let (index, next) = (self.index, self.index + 1);
        self.index = next;
        // Which thread runs a case changes nothing that the cases compute, so no memory is ordered by it.
        let claim = |shared: &Shared| shared.next.compare_exchange(index, next, Ordering::Relaxed, Ordering::Relaxed);
        self.shared.is_none_or(|shared| claim(shared).is_ok())
    }

    fn times(&self, case: &Case) -> bool {
        let Cost { flops, bytes } = case.cost;
        let costs = flops.max(bytes) > 0.0 && flops <= B::MAX_TIMED_FLOPS;
        self.timer.is_some() && costs && case.size >= self.min_timed
    }

    fn attempt(&mut self, case: &Case, prepared: Prepared<'_, B>) -> Result<(Verdict, Option<f64>)> {
        let (run, expected) = match prepared {
            Prepared::Ready { run, expected } => (run, expected),
            Prepared::Skipped(reason) => return Ok((Verdict::Skipped(reason), None)),
        };
        let verdict = if self.compared { self.compare(case.size, &*run, expected)? } else { Verdict::Timed };
        self.backend.poison(false);
        if !self.times(case) {
            return Ok((verdict, None));
        }
        let (backend, op, flush) = (self.backend, self.op, self.flush.as_ref());
        let run = || {
            // The flush also takes a device so long that the launches of the run are waiting when it ends.
            flush.map_or(Ok(()), |buffer| backend.flush_l2(buffer))?;
            let start = backend.record_event()?;
            run()?;
            let end = backend.record_event()?;
            Ok(backend.elapsed(&start, &end)? * 1e-3)
        };
        let alone = self.shared.map(|shared| shared.device.write().unwrap_or_else(PoisonError::into_inner));
        let seconds = self.timer.as_mut().map(|timer| timer(Timing { op, case, run: &run })).transpose()?;
        drop(alone);
        Ok((verdict, seconds.map(|seconds| seconds * 1e6)))
    }

    /// Compares the results of all schedules with each other and the first with what is expected.
    fn compare<'c>(
        &self,
        size: Size,
        run: &dyn Fn() -> Result<Output<B>>,
        expected: impl FnOnce() -> Result<Expected<'c>>,
    ) -> Result<Verdict> {
        let backend = self.backend;
        // Checking every access takes an emulator too long for the largest cases.
        let download = || match run()? {
            Output::Tensor(tensor) => backend.download(&tensor),
            Output::Values(values) => Ok(values),
        };
        let results = using(self.shared, || backend.run_all_schedules(size < Size::Real, &download))?;
        let Some((first, others)) = results.split_first() else {
            return Err(Error::shape(self.op, "nothing was run"));
        };
        // The order of threads, or a second run, must not change a bit.
        let differs = |other: &Vec<f32>| {
            let known = other.len().min(first.len());
            let length = (other.len() != first.len()).then_some(known);
            other.iter().zip(first).position(|(a, b)| a.to_bits() != b.to_bits()).or(length)
        };
        if let Some((run, at)) = others.iter().enumerate().find_map(|(n, other)| Some((n + 2, differs(other)?))) {
            return Ok(Verdict::Failed(format!("run {run} gives other bits than run 1, first in value {at}")));
        }
        let deviation = expected()?.compare(first)?;
        Ok(match deviation.error <= deviation.allowed {
            true => Verdict::Passed(deviation),
            false => Verdict::Wrong(deviation),
        })
    }

    fn note(&mut self, case: Case, (verdict, microseconds): (Verdict, Option<f64>)) -> Result<()> {
        let Case { name, dtype, cost, .. } = case;
        let outcome = Outcome { index: self.index, op: self.op, case: name, dtype, verdict, microseconds, cost };
        self.report(Progress::Outcome(&outcome));
        self.outcomes.push(outcome);
        Ok(())
    }

    fn report(&mut self, progress: Progress<'_>) {
        if let Some(observer) = &mut self.observer {
            observer(progress);
        }
    }
}

/// Result of `work`, which uses the device while nothing is timed there.
fn using<T>(shared: Option<&Shared>, work: impl FnOnce() -> T) -> T {
    let _in_use = shared.map(|shared| shared.device.read().unwrap_or_else(PoisonError::into_inner));
    work()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::tensor::DType;

    fn case(name: &str, size: Size) -> Case {
        Case { name: name.into(), dtype: DType::F32, size, cost: Cost { flops: 1.0, bytes: 1.0 } }
    }

    fn values(value: f32) -> Result<Output<Cpu>> {
        Ok(Output::Values(vec![value]))
    }

    fn one<'c>() -> Result<Expected<'c>> {
        Ok(Expected::Exact(vec![1.0]))
    }

    /// Everything that can happen to a case, in turn.
    fn check(harness: &mut Harness<'_, Cpu>) -> Result<()> {
        harness.case(case("right", Size::Small), |_| Prepared::new(|| values(1.0), one))?;
        harness.case(case("wrong", Size::Small), |_| Prepared::new(|| values(1.5), one))?;
        harness.case(case("no inputs", Size::Small), |_| Err(Error::shape("inputs", "too large")))?;
        harness.case(case("an error", Size::Small), |_| Prepared::new(|| Err(Error::shape("op", "refused")), one))?;
        harness.case(case("a panic", Size::Small), |_| Prepared::new(|| panic!("out of {}", "bounds"), one))?;
        harness.case(case("nothing to compare with", Size::Small), |_| {
            Prepared::new(|| values(1.0), || Err(Error::shape("reference", "missing")))
        })?;
        let runs = std::cell::Cell::new(0.0);
        harness
            .case(case("other bits", Size::Small), |_| Prepared::new(|| values(runs.replace(runs.get() + 1.0)), one))?;
        harness.case(case("too large", Size::Real), |_| panic!("not wanted"))?;
        harness.case(case("the last", Size::Ragged), |_| Prepared::new(|| values(1.0), one))
    }

    fn verdicts(harness: &Harness<'_, Cpu>) -> Vec<(String, Verdict)> {
        harness.outcomes.iter().map(|outcome| (outcome.case.clone(), outcome.verdict.clone())).collect()
    }

    #[test]
    fn whatever_happens_to_a_case_is_its_outcome_and_the_next_runs() -> Result<()> {
        let mut seen = Vec::new();
        let mut observer = |progress: Progress<'_>| match progress {
            Progress::Case(op, case) => seen.push(format!("{op}: {}", case.name)),
            Progress::Outcome(outcome) => seen.push(format!("{} {}", outcome.case, outcome.passed())),
        };
        let mut harness = Harness { compared: true, ..Harness::new(&Cpu, Size::Ragged).observed(&mut observer) };
        harness.operation("op", check)?;
        let failed = |problem: &str| Verdict::Failed(problem.into());
        let deviation = |error| super::super::Deviation { error, allowed: 0.0 };
        let expected = [
            ("right", Verdict::Passed(deviation(0.0))),
            ("wrong", Verdict::Wrong(deviation(0.5))),
            ("no inputs", failed("inputs: too large")),
            ("an error", failed("op: refused")),
            ("a panic", failed("panicked: out of bounds")),
            ("nothing to compare with", failed("reference: missing")),
            ("other bits", failed("run 2 gives other bits than run 1, first in value 0")),
            ("the last", Verdict::Passed(deviation(0.0))),
        ];
        assert_eq!(verdicts(&harness), expected.map(|(case, verdict)| (case.to_string(), verdict)));
        drop(harness);
        assert_eq!(seen[..4], ["op: right", "right true", "op: wrong", "wrong false"]);
        assert_eq!(seen.len(), 16);
        Ok(())
    }

    #[test]
    fn only_what_is_timed_is_run_where_nothing_is_compared() -> Result<()> {
        let (mut timed, mut untimed) = (Vec::new(), case("of no cost", Size::Real));
        untimed.cost = Cost::default();
        let mut timer = |timing: Timing<'_>| {
            timed.push(timing.case.name.clone());
            (timing.run)()
        };
        let mut harness = Harness::new(&Cpu, Size::Real).timed(Size::Real, None, &mut timer);
        harness.case(case("real", Size::Real), |_| Prepared::new(|| values(0.0), || panic!("not wanted")))?;
        harness.case(case("small", Size::Small), |_| panic!("not wanted"))?;
        harness.case(untimed, |_| panic!("not wanted"))?;
        let huge = Case { cost: Cost { flops: 1e12, bytes: 1.0 }, ..case("huge", Size::Real) };
        harness.case(huge, |_| panic!("not wanted"))?;
        assert_eq!(verdicts(&harness), [("real".to_string(), Verdict::Timed)]);
        assert!(harness.outcomes[0].microseconds.is_some());
        drop(harness);
        assert_eq!(timed, ["real"]);
        Ok(())
    }

    /// Three harnesses, each of which comes to every case.
    #[test]
    fn shared_cases_are_run_once_each_and_nothing_runs_while_one_is_timed() {
        let (shared, running) = (Shared::default(), AtomicUsize::new(0));
        let work = || {
            let mut timer = |timing: Timing<'_>| {
                let seconds = (timing.run)()?;
                assert_eq!(running.load(Ordering::SeqCst), 0);
                Ok(seconds)
            };
            let harness = Harness::new(&Cpu, Size::Real).timed(Size::Real, None, &mut timer);
            let mut harness = Harness { compared: true, ..harness }.sharing(&shared, 0);
            for n in 0..60 {
                let size = if n % 3 == 0 { Size::Real } else { Size::Small };
                let run = |_: &Inputs| {
                    running.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    running.fetch_sub(1, Ordering::SeqCst);
                    Prepared::new(|| values(1.0), one)
                };
                harness.case(case(&n.to_string(), size), run).expect("the device answers");
            }
            assert_eq!(harness.index(), 60);
            harness.outcomes
        };
        let parts: Vec<Vec<Outcome>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..3).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
        });
        let mut outcomes = parts.concat();
        outcomes.sort_by_key(|outcome| outcome.index);
        let names: Vec<String> = outcomes.iter().map(|outcome| outcome.case.clone()).collect();
        assert_eq!(names, (0..60).map(|n| n.to_string()).collect::<Vec<_>>());
        assert!(outcomes.iter().all(Outcome::passed), "{outcomes:?}");
        assert_eq!(outcomes.iter().filter(|outcome| outcome.microseconds.is_some()).count(), 20);
    }
}
