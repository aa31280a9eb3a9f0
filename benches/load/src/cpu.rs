//! Time on a CPU of a process and of those it started, by the kernel's own account.

use std::fs;
use std::io;
use std::ops::Sub;
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

/// The unit of /proc/PID/stat: a hundredth of a second on every Linux.
const TICK_NANOS: u64 = 10_000_000;

/// What a family of processes used so far. The total is exact to the nanosecond for those that
/// live, to a tick for each that ended. Of user and system the kernel tells ticks only, so these are
/// a split of the total.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    nanos: u64,
    user_ticks: u64,
    system_ticks: u64,
}

impl Cpu {
    /// Of this process, its threads and its descendants, those that ended included.
    pub fn of_family(pid: u32) -> io::Result<Self> {
        let mut sum = Self::of(pid)?;
        for descendant in descendants(pid)? {
            // It may end while it is looked at; its parent then accounts for it.
            if let Ok(cpu) = Self::of(descendant) {
                sum.add(cpu);
            }
        }
        Ok(sum)
    }

    fn of(pid: u32) -> io::Result<Self> {
        let stat = Stat::of(pid)?;
        // The process's own clock runs for all its threads, and for those that ended.
        let clock = clock_getcpuclockid(Pid::from_raw(pid as i32))?.now()?;
        let ended_ticks = stat.children_user + stat.children_system;
        Ok(Self {
            nanos: Duration::from(clock).as_nanos() as u64 + ended_ticks * TICK_NANOS,
            user_ticks: stat.user + stat.children_user,
            system_ticks: stat.system + stat.children_system,
        })
    }

    fn add(&mut self, other: Self) {
        self.nanos += other.nanos;
        self.user_ticks += other.user_ticks;
        self.system_ticks += other.system_ticks;
    }

    pub fn seconds(self) -> f64 {
        self.nanos as f64 / 1e9
    }

    /// The share of the total that was spent in the program itself.
    pub fn user_seconds(self) -> f64 {
        let ticks = self.user_ticks + self.system_ticks;
        if ticks == 0 {
            return 0.0;
        }
        self.seconds() * self.user_ticks as f64 / ticks as f64
    }
}

impl Sub for Cpu {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        Self {
            nanos: self.nanos.saturating_sub(earlier.nanos),
            user_ticks: self.user_ticks.saturating_sub(earlier.user_ticks),
            system_ticks: self.system_ticks.saturating_sub(earlier.system_ticks),
        }
    }
}

/// Children, their children and so on. Not every kernel lists them below their parent, so all
/// processes are asked who started them.
fn descendants(pid: u32) -> io::Result<Vec<u32>> {
    let mut parents = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        if let Some(child) = name.to_str().and_then(|name| name.parse().ok())
            && let Ok(stat) = Stat::of(child)
        {
            parents.push((child, stat.parent));
        }
    }
    let mut family = vec![pid];
    let mut known = 0;
    while known < family.len() {
        let parent = family[known];
        family.extend(
            parents
                .iter()
                .filter(|pair| pair.1 == parent)
                .map(|pair| pair.0),
        );
        known += 1;
    }
    family.remove(0);
    Ok(family)
}

/// What is read of /proc/PID/stat.
struct Stat {
    parent: u32,
    user: u64,
    system: u64,
    children_user: u64,
    children_system: u64,
}

impl Stat {
    fn of(pid: u32) -> io::Result<Self> {
        Self::read(&fs::read_to_string(format!("/proc/{pid}/stat"))?)
    }

    fn read(line: &str) -> io::Result<Self> {
        // The name, in brackets, may hold anything. The first field behind it is the third of all.
        let behind_name = line.rsplit_once(") ").map_or("", |(_, rest)| rest);
        let field = |place: usize| number(behind_name.split(' ').nth(place - 3));
        Ok(Self {
            parent: field(4)? as u32,
            user: field(14)?,
            system: field(15)?,
            children_user: field(16)?,
            children_system: field(17)?,
        })
    }
}

fn number(text: Option<&str>) -> io::Result<u64> {
    text.and_then(|digits| digits.parse().ok())
        .ok_or_else(|| io::Error::other("an account in /proc that is not a number"))
}

#[cfg(test)]
mod tests {
    use std::hint::black_box;
    use std::process::Command;
    use std::time::Instant;

    use super::*;

    #[test]
    fn the_name_of_a_process_cannot_confuse_its_account() {
        let line = "7 (a) (b c) S 1 7 7 0 -1 4194560 1 2 3 4 11 12 13 14 20 0 1 0";
        let stat = Stat::read(line).expect("it has all fields");
        let times = (
            stat.user,
            stat.system,
            stat.children_user,
            stat.children_system,
        );
        assert_eq!((stat.parent, times), (1, (11, 12, 13, 14)));
    }

    #[test]
    fn children_count_while_they_live_and_when_they_ended() {
        let me = std::process::id();
        let before = Cpu::of_family(me).expect("it lives");
        let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i + 1)); done";
        let mut child = Command::new("sh")
            .args(["-c", spin])
            .spawn()
            .expect("there is a shell");
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(20) {
            black_box(start);
        }
        child.wait().expect("it ends");
        let used = Cpu::of_family(me).expect("it lives") - before;
        assert!(used.seconds() > 0.05, "{} s", used.seconds());
    }

    #[test]
    fn user_and_system_are_a_split_of_the_total() {
        let cpu = |nanos, user_ticks, system_ticks| Cpu {
            nanos,
            user_ticks,
            system_ticks,
        };
        let used = cpu(3_100_000_000, 130, 270) - cpu(100_000_000, 55, 45);
        assert_eq!((used.seconds(), used.user_seconds()), (3.0, 0.75));
        assert_eq!(cpu(5_000_000, 0, 0).user_seconds(), 0.0);
    }
}
