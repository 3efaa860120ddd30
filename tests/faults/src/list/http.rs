//! HTTP services: every way in which one answers badly, late, or not at all.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;
use usersync_stack::Certificates;

use crate::{
    fault::{Fault, a_while},
    names::{Names, Says},
    proxy::Line,
    receiver::Manners,
    world::{SECRETS, SOON, World},
};

const METADATA: &str = "http://169.254.169.254/latest/meta-data/";

pub(crate) const FAULTS: &[Fault] = &[
    Fault::new(60, "http-500", |world, dice| {
        Box::pin(badly(world, dice, Manners::Status(500)))
    })
    .told(&["breaker"]),
    Fault::new(61, "http-429-1", |world, dice| {
        Box::pin(badly(world, dice, Manners::Busy("1")))
    }),
    Fault::new(62, "http-429-garbage", |world, dice| {
        Box::pin(badly(world, dice, Manners::Busy("next week, maybe")))
    }),
    Fault::new(63, "http-429-for-ever", |world, dice| {
        Box::pin(for_ever(world, dice))
    }),
    Fault::new(64, "http-hangs", |world, dice| {
        Box::pin(badly(world, dice, Manners::Hangs))
    }),
    Fault::new(65, "http-applied-and-hangs", |world, dice| {
        Box::pin(badly(world, dice, Manners::TakesAndHangs))
    }),
    Fault::new(66, "http-applied-and-reset", |world, dice| {
        Box::pin(badly(world, dice, Manners::TakesAndResets))
    }),
    Fault::new(67, "http-one-byte-a-second", |world, dice| {
        Box::pin(badly(world, dice, Manners::Trickles))
    }),
    Fault::new(68, "http-redirect-to-metadata", |world, dice| {
        Box::pin(badly(world, dice, Manners::Redirects(METADATA)))
    }),
    Fault::new(69, "http-one-gigabyte", |world, dice| {
        Box::pin(badly(world, dice, Manners::Floods))
    }),
    Fault::new(70, "http-not-gzip", |world, dice| {
        Box::pin(badly(world, dice, Manners::Bombs))
    }),
    Fault::new(71, "http-401", |world, dice| {
        Box::pin(badly(world, dice, Manners::Status(401)))
    })
    .told(&["breaker"]),
    Fault::new(72, "http-half-down", |world, dice| {
        Box::pin(badly(world, dice, Manners::HalfDown))
    }),
    Fault::new(73, "http-line-black-hole", |world, dice| {
        Box::pin(line(world, dice, Line::BlackHole))
    }),
    Fault::new(74, "http-line-cut", |world, dice| {
        Box::pin(line(world, dice, Line::Cut(60)))
    }),
    Fault::new(75, "http-line-half-closed", |world, dice| {
        Box::pin(line(world, dice, Line::HalfClosed))
    }),
    Fault::new(76, "http-line-throttled", |world, dice| {
        Box::pin(line(world, dice, Line::Throttled(20_000)))
    }),
    Fault::new(77, "http-line-refused", |world, dice| {
        Box::pin(line(world, dice, Line::Refused))
    }),
    Fault::new(78, "http-lines-reset", |world, dice| {
        Box::pin(resets(world, dice))
    }),
    poisoned(Fault::new(79, "http-poison-user", |world, dice| {
        Box::pin(a_poison(world, dice))
    }))
    .told(&["dead"]),
    Fault::new(80, "http-410", |world, dice| Box::pin(gone(world, dice))).told(&["gone"]),
    Fault::new(81, "http-200-and-nothing", |world, dice| {
        Box::pin(ignored(world, dice))
    }),
    Fault::new(82, "tls-expired", |world, dice| {
        Box::pin(shown(world, dice, |ours, _| ours.show("expired")))
    })
    .told(&["breaker"]),
    Fault::new(83, "tls-of-another-host", |world, dice| {
        Box::pin(shown(world, dice, |ours, _| ours.show("wrong-host")))
    })
    .told(&["breaker"]),
    Fault::new(84, "tls-of-strangers", |world, dice| {
        Box::pin(shown(world, dice, |ours, strangers| {
            fs::copy(strangers.key("server"), ours.key("server"))?;
            fs::copy(strangers.cert("server"), ours.cert("server"))?;
            Ok(())
        }))
    })
    .told(&["breaker"]),
    Fault::new(85, "secret-replaced", |world, dice| {
        Box::pin(replaced(world, dice))
    })
    .told(&["breaker"]),
    Fault::new(86, "name-hangs", |world, dice| {
        Box::pin(unknown(world, dice, Says::Nothing))
    })
    .needing(Names::is_possible),
    Fault::new(87, "name-gone", |world, dice| {
        Box::pin(unknown(world, dice, Says::NoSuchName))
    })
    .needing(Names::is_possible)
    .told(&["breaker"]),
    Fault::new(88, "name-rebinds", |world, dice| {
        Box::pin(rebinds(world, dice))
    })
    .needing(Names::is_possible)
    .told(&["breaker"]),
];

const fn poisoned(mut fault: Fault) -> Fault {
    fault.poisoned = Some(0);
    fault
}

async fn badly(world: &mut World, dice: &mut fastrand::Rng, manners: Manners) -> Result<()> {
    for receiver in [&world.guarded, &world.plain] {
        receiver.behaves(manners);
    }
    for _ in 0..3 {
        a_while(dice).await;
    }
    for receiver in [&world.guarded, &world.plain] {
        receiver.behaves(Manners::Good);
    }
    Ok(())
}

/// Whoever was told to wait for thirty years waits for an hour at most; an operator doesn't.
async fn for_ever(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    world.guarded.behaves(Manners::Busy("1000000000"));
    a_while(dice).await;
    world.guarded.behaves(Manners::Good);
    let repair = r#"{"target":"guarded","all":true}"#;
    world.ask("usersync.repair.start", repair).await
}

/// A target that says that it is gone is disabled, until an operator says that it was a mistake.
async fn gone(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    badly(world, dice, Manners::Status(410)).await?;
    for target in [r#"{"name":"guarded"}"#, r#"{"name":"plain"}"#] {
        world.ask("usersync.targets.resume", target).await?;
    }
    Ok(())
}

/// Nobody can know, until a check reads what is there; so many differ that it wants to be approved.
async fn ignored(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    badly(world, dice, Manners::Ignores).await?;
    for check in [r#"{"target":"guarded"}"#, r#"{"target":"plain"}"#] {
        world.ask("usersync.check.approve", check).await?;
    }
    Ok(())
}

/// The service over TLS shows another certificate, and then a good one again.
async fn shown(
    world: &mut World,
    dice: &mut fastrand::Rng,
    show: fn(&Certificates, &Certificates) -> Result<()>,
) -> Result<()> {
    show(&world.certificates, &world.strangers)?;
    world.guarded_line.reset();
    for _ in 0..3 {
        a_while(dice).await;
    }
    world.certificates.renew("server")?;
    world.guarded_line.reset();
    Ok(())
}

/// The service takes calls that are signed with another secret alone; workers have it later.
async fn replaced(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let held = fs::read_to_string(world.secret())?;
    let others = SECRETS.iter().find(|secret| **secret != held);
    let other = others.context("there are two")?;
    world.guarded.takes(other);
    for _ in 0..3 {
        a_while(dice).await;
    }
    fs::write(world.secret(), other)?;
    for worker in world.workers("guarded") {
        worker.stop(SOON).await?;
        worker.restart().await?;
    }
    Ok(())
}

/// Nobody can say where the service without a guard is; nobody reaches it, once no connection is left.
async fn unknown(world: &mut World, dice: &mut fastrand::Rng, says: Says) -> Result<()> {
    let names = world.names.as_ref().context("there is no DNS server")?;
    let asked = names.asked();
    names.say(says);
    world.plain_line.reset();
    for _ in 0..3 {
        a_while(dice).await;
    }
    ensure!(names.asked() > asked, "nobody asked where it is");
    names.say(Says::Right);
    Ok(())
}

/// The name leads where no target may be: always, then every other time, then beside the right address. Meanwhile
/// everybody is told it again, by new connections.
async fn rebinds(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    let names = world.names.as_ref().context("there is no DNS server")?;
    let line = &world.plain_line;
    // The first one for so long that people are told.
    for (says, seconds) in [(Says::Forbidden, 8), (Says::InTurn, 4), (Says::Both, 4)] {
        names.say(says);
        let calling = async {
            let repair = r#"{"target":"plain","all":true}"#;
            world.ask("usersync.repair.start", repair).await?;
            let end = Instant::now() + Duration::from_secs(seconds);
            while Instant::now() < end {
                line.reset();
                tokio::time::sleep(Duration::from_millis(dice.u64(100..300))).await;
            }
            Ok(())
        };
        names.watched(line.port(), calling).await?;
    }
    names.say(Says::Right);
    line.reset();
    Ok(())
}

async fn line(world: &mut World, dice: &mut fastrand::Rng, line: Line) -> Result<()> {
    for proxy in [&world.guarded_line, &world.plain_line] {
        proxy.is(line);
        proxy.reset();
    }
    for _ in 0..2 {
        a_while(dice).await;
    }
    for proxy in [&world.guarded_line, &world.plain_line] {
        proxy.is(Line::Good);
        proxy.reset();
    }
    Ok(())
}

async fn resets(world: &mut World, _dice: &mut fastrand::Rng) -> Result<()> {
    for _ in 0..20 {
        world.guarded_line.reset();
        world.plain_line.reset();
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    Ok(())
}

/// The first user of the load; see `Fault::poisoned`.
async fn a_poison(world: &mut World, dice: &mut fastrand::Rng) -> Result<()> {
    for _ in 0..3 {
        a_while(dice).await;
    }
    anyhow::ensure!(world.guarded.calls() > 0, "nobody was called");
    Ok(())
}
