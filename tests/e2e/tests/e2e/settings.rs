//! Streams and settings: made once and never changed silently; everything wrong is said at once.

#![allow(clippy::unwrap_used, reason = "a test fails where its set-up fails")]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use async_nats::jetstream::stream::{self, StorageType};
use serde_json::{Value, json};
use usersync_core::streams;
use usersync_core::subjects::{
    INTAKE, USER_ADVISORY, USER_ALERT, USER_CHECK, USER_DEAD, USER_EVENTS, USER_REFUSED,
    USER_REPAIR, USER_RESULT, USER_STATE,
};
use usersync_stack::{Directory, Launch, tools};

use crate::intake::Intake;

const STREAMS: [&str; 9] = [
    USER_EVENTS,
    USER_STATE,
    USER_REPAIR,
    USER_DEAD,
    USER_REFUSED,
    USER_ADVISORY,
    USER_RESULT,
    USER_CHECK,
    USER_ALERT,
];
const EX_USAGE: i32 = 64;
const GRACE: Duration = Duration::from_secs(20);

/// What a program said before it ended.
struct Ended {
    code: i32,
    said: String,
}

/// Runs one of our binaries to its end.
async fn run(launch: Launch) -> Ended {
    let process = launch.spawn().unwrap();
    let status = process.wait_exit(GRACE).await.unwrap();
    Ended {
        code: status.code().unwrap_or(-1),
        said: fs::read_to_string(launch.log()).unwrap(),
    }
}

/// One of our binaries without any server.
fn binary(name: &str, dir: &Directory, args: &[&str]) -> Launch {
    let program = tools::binary(name, tools::Profile::own()).unwrap();
    let number = fs::read_dir(dir.path()).unwrap().count();
    Launch::new(
        name,
        program,
        dir.path().join(format!("{name}-{number}.log")),
    )
    .args(args)
}

impl Ended {
    fn says(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{}", self.said);
        for part in parts {
            assert!(self.said.contains(part), "no {part:?} in {}", self.said);
        }
    }
}

/// What ships, with everything in it that is commented out.
fn every_setting() -> String {
    let shipped = tools::repository().join("deploy/usersync.toml");
    let shipped = fs::read_to_string(shipped).unwrap();
    let uncommented = |line: &str| match line.strip_prefix("# ") {
        Some(setting) if setting.starts_with('[') || setting.contains(" = ") => setting.to_owned(),
        _ => line.to_owned(),
    };
    shipped
        .lines()
        .map(|line| uncommented(line) + "\n")
        .collect()
}

#[tokio::test]
async fn one_file_with_every_setting_serves_all_programs() {
    let dir = Directory::temporary().unwrap();
    let file = dir.path().join("usersync.toml");
    let all = every_setting();
    assert!(all.contains("\nduplicate_window = ") && all.contains("\n[sources.main]"));
    // Nobody is asked: that is another problem, which keeps --check from looking for NATS.
    fs::write(
        &file,
        all.replace("cache_mib = 64", "cache_mib = 64\nnothing = 1"),
    )
    .unwrap();
    for name in ["usersync-gateway", "usersync-worker", "usersync-scheduler"] {
        let args = ["--check", "--config", file.to_str().unwrap()];
        let ended = run(binary(name, &dir, &args)).await;
        let strange: Vec<_> = ended
            .said
            .lines()
            .filter(|line| line.contains("is no setting"))
            .collect();
        let expected = usize::from(name == "usersync-gateway");
        assert_eq!(strange.len(), expected, "{name}: {}", ended.said);
    }
}

#[tokio::test]
async fn the_streams_are_printed_as_json_all_or_one() {
    let dir = Directory::temporary().unwrap();
    let gateway = |args: &[&str]| run(binary("usersync-gateway", &dir, args));
    let all = gateway(&["--print-streams"]).await;
    all.says(0, &[]);
    let all: Vec<Value> = serde_json::from_str(&all.said).unwrap();
    let names: Vec<_> = all.iter().map(|stream| &stream["name"]).collect();
    assert_eq!(names, STREAMS);
    for (name, stream) in STREAMS.into_iter().zip(&all) {
        let one = gateway(&["--print-streams", name]).await;
        one.says(0, &[]);
        assert_eq!(&serde_json::from_str::<Value>(&one.said).unwrap(), stream);
    }
    let none = gateway(&["--print-streams", "USER_NONE"]).await;
    none.says(1, &["USER_NONE", "USER_EVENTS", "USER_ADVISORY"]);
}

#[tokio::test]
async fn streams_made_from_the_printed_json_are_those_of_the_gateway() {
    let intake = Intake::with_gateways(0).await;
    let dir = Directory::temporary().unwrap();
    let printed = run(binary("usersync-gateway", &dir, &["--print-streams"])).await;
    let printed: Vec<stream::Config> = serde_json::from_str(&printed.said).unwrap();
    for config in printed {
        intake.jetstream.create_stream(config).await.unwrap();
    }
    let made = streams_of(&intake).await;
    let gateway = intake.spawn_gateway("gateway", &[]);
    gateway.until_ready().await.unwrap();
    assert_eq!(streams_of(&intake).await, made);
}

#[tokio::test]
async fn the_gateway_makes_every_stream_and_consumer_once() {
    let mut intake = Intake::start().await;
    intake
        .publish_json("user.created", json!({"user_id": 42}))
        .await;
    intake.all_taken_in().await;
    let before = streams_of(&intake).await;
    assert_eq!(before.len(), STREAMS.len());
    let consumers = consumers_of(&intake).await;
    let names: Vec<_> = consumers.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "USER_EVENTS gateway-intake",
            "USER_REPAIR redis-cache",
            "USER_STATE redis-cache"
        ]
    );

    intake.stack.gateways[0].restart().await.unwrap();
    intake.stack.add_gateway().await.unwrap();
    assert_eq!(
        streams_of(&intake).await,
        before,
        "created at the same time, configured the same"
    );
    assert_eq!(consumers_of(&intake).await, consumers);
    assert_eq!(intake.size(USER_STATE).await, (1, 1));
}

/// When each stream was created, and its configuration.
async fn streams_of(intake: &Intake) -> BTreeMap<String, (String, Value)> {
    let mut streams = BTreeMap::new();
    for name in STREAMS {
        let Ok(stream) = intake.jetstream.get_stream(name).await else {
            continue;
        };
        let info = stream.cached_info();
        let config = serde_json::to_value(&info.config).unwrap();
        streams.insert(name.to_owned(), (info.created.to_string(), config));
    }
    streams
}

/// When each consumer was created, and its configuration.
async fn consumers_of(intake: &Intake) -> BTreeMap<String, (String, Value)> {
    let mut consumers = BTreeMap::new();
    for (stream, name) in [
        (USER_EVENTS, INTAKE),
        (USER_STATE, "redis-cache"),
        (USER_REPAIR, "redis-cache"),
    ] {
        let info = intake.stream(stream).await.consumer_info(name).await;
        let info = info.unwrap();
        let config = serde_json::to_value(&info.config).unwrap();
        consumers.insert(
            format!("{stream} {name}"),
            (info.created.to_string(), config),
        );
    }
    consumers
}

#[tokio::test]
async fn a_stream_of_another_shape_stops_the_gateway_and_stays_as_it_is() {
    let intake = Intake::with_gateways(0).await;
    let all = streams::all(1);
    let wrong = stream::Config {
        max_messages_per_subject: -1,
        storage: StorageType::Memory,
        ..all[1].clone()
    };
    intake.jetstream.create_stream(wrong).await.unwrap();
    let before = streams_of(&intake).await;

    let ended = run(intake
        .launch("usersync-gateway", "gateway")
        .args(["--listen", "127.0.0.1:0"]))
    .await;
    let told = [
        "USER_STATE: max_msgs_per_subject is -1, expected 1",
        "USER_STATE: storage is Memory, expected File",
        "nothing was changed",
        "nats stream edit",
    ];
    ended.says(1, &told);
    assert_eq!(
        streams_of(&intake).await,
        before,
        "nothing was made or changed"
    );
}

#[tokio::test]
async fn checking_tells_of_a_stream_of_another_shape() {
    let intake = Intake::with_gateways(0).await;
    let wrong = stream::Config {
        max_messages_per_subject: -1,
        ..streams::all(1)[1].clone()
    };
    intake.jetstream.create_stream(wrong).await.unwrap();
    let launch = intake.launch("usersync-gateway", "check");
    let ended = run(launch.args(["--listen", "127.0.0.1:0", "--check"])).await;
    ended.says(1, &["USER_STATE: max_msgs_per_subject is -1, expected 1"]);
}

#[tokio::test]
async fn replicas_come_from_file_environment_and_flag_in_that_order() {
    let dir = Directory::temporary().unwrap();
    let file = dir.path().join("gateway.yaml");
    fs::write(&file, "streams: {replicas: 3}\n").unwrap();
    let from_file = [
        "--print-streams",
        "USER_STATE",
        "--config",
        file.to_str().unwrap(),
    ];
    let replicas = async |launch: Launch| {
        let ended = run(launch).await;
        ended.says(0, &[]);
        serde_json::from_str::<Value>(&ended.said).unwrap()["num_replicas"].clone()
    };
    let gateway = |args: &[&str]| binary("usersync-gateway", &dir, args);
    assert_eq!(replicas(gateway(&from_file[..2])).await, 1);
    assert_eq!(replicas(gateway(&from_file)).await, 3);
    let env = || gateway(&from_file).env("USERSYNC_STREAMS__REPLICAS", "5");
    assert_eq!(replicas(env()).await, 5);
    assert_eq!(replicas(env().args(["--replicas", "1"])).await, 1);
}

#[tokio::test]
async fn replicas_that_the_server_can_not_give_are_told_with_the_stream() {
    let intake = Intake::with_gateways(0).await;
    let launch = intake.launch("usersync-gateway", "gateway");
    let ended = run(launch.args(["--listen", "127.0.0.1:0", "--replicas", "3"])).await;
    ended.says(1, &["USER_EVENTS", "replicas"]);
}

#[tokio::test]
async fn everything_wrong_with_a_gateways_settings_is_said_at_once() {
    let dir = Directory::temporary().unwrap();
    let targets = dir.path().join("targets.toml");
    fs::write(&targets, "[shop]\nurl = \"http://x/\"\ntimeout = \"0s\"\n").unwrap();
    let file = dir.path().join("gateway.toml");
    let text = format!(
        "listen = 'everywhere'\ntargets = {targets:?}\nlisten_on = 1\n\
         [streams]\nreplicas = 2\n[nats]\npassword = 'swordfish'\n[intake]\ncache_mib = 0\nfast = true\n"
    );
    fs::write(&file, text).unwrap();
    let launch = binary(
        "usersync-gateway",
        &dir,
        &["--config", file.to_str().unwrap()],
    );
    let ended = run(launch.env("USERSYNC_LOG__FORMAT", "pretty")).await;
    let file = file.display();
    ended.says(
        EX_USAGE,
        &[
            &format!("{file}: listen: expected an address and port"),
            &format!("{file}: streams.replicas: expected 1, 3 or 5"),
            &format!("{file}: nats.password: expected a reference"),
            &format!("{file}: intake.cache_mib: expected a number"),
            &format!("{file}: intake.fast: is no setting"),
            &format!("{file}: listen_on: is no setting"),
            "USERSYNC_LOG__FORMAT: log.format: expected human or json",
            "targets.toml: shop.timeout: expected more than 0s",
        ],
    );
    assert!(!ended.said.contains("swordfish"), "{}", ended.said);
}

#[tokio::test]
async fn settings_that_can_not_be_read_are_told_with_their_file() {
    let dir = Directory::temporary().unwrap();
    let broken = dir.path().join("broken.toml");
    fs::write(&broken, "listen = \n").unwrap();
    for name in ["usersync-gateway", "usersync-worker"] {
        let launch = binary(name, &dir, &["--config", broken.to_str().unwrap()]);
        run(launch).await.says(EX_USAGE, &["broken.toml", "line 1"]);
        let launch = binary(name, &dir, &["--config", "/no/such/file.toml"]);
        run(launch)
            .await
            .says(EX_USAGE, &["/no/such/file.toml: no such file"]);
    }
}

#[tokio::test]
async fn a_worker_takes_names_of_targets_only() {
    let dir = Directory::temporary().unwrap();
    let launch = binary("usersync-worker", &dir, &["--target", "Not A Name"]);
    let ended = run(launch).await;
    ended.says(EX_USAGE, &["target: expected names of targets"]);
}

#[tokio::test]
async fn checking_succeeds_where_everything_answers_and_changes_nothing() {
    let intake = Intake::with_gateways(0).await;
    for name in ["usersync-gateway", "usersync-worker"] {
        let launch = intake.launch(name, name);
        let ended = run(launch.args(["--listen", "127.0.0.1:0", "--check"])).await;
        ended.says(0, &["NATS with JetStream answers"]);
        if name == "usersync-worker" {
            ended.says(0, &["the target answers", "redis-cache"]);
        } else {
            ended.says(0, &["USER_STATE", "user_targets", "would be created"]);
        }
    }
    assert!(streams_of(&intake).await.is_empty());
}

#[tokio::test]
async fn checking_fails_and_says_what_does_not_answer() {
    let dir = Directory::temporary().unwrap();
    let port = usersync_stack::free_port().unwrap();
    let nats = format!("nats://127.0.0.1:{port}");
    let told = format!("can't connect to NATS at {nats}");
    let args = ["--check", "--nats-url", &nats, "--listen", "127.0.0.1:0"];
    run(binary("usersync-gateway", &dir, &args))
        .await
        .says(1, &[&told, "is nats-server running there?"]);

    // The worker says all of it: NATS and the target.
    let targets = dir.path().join("targets.toml");
    let gone = usersync_stack::free_port().unwrap();
    fs::write(
        &targets,
        format!("[cache]\nurl = \"redis://127.0.0.1:{gone}\"\n"),
    )
    .unwrap();
    let launch = binary("usersync-worker", &dir, &args);
    let ended = run(launch.arg("--targets").arg(targets)).await;
    ended.says(1, &["2 of the connections failed", &told, "target cache"]);
}

#[tokio::test]
async fn who_is_a_stranger_to_nats_is_told_how_to_say_who_they_are() {
    let intake = Intake::with_gateways(0).await;
    let dir = Directory::temporary().unwrap();
    let url = intake.stack.nats.url();
    for command in ["--check", "status"] {
        let ended = run(binary(
            "usersync-gateway",
            &dir,
            &[command, "--nats-url", &url, "--listen", "127.0.0.1:0"],
        ));
        ended.await.says(1, &["USERSYNC_NATS__USER", "nats.nkey"]);
    }
}

#[tokio::test]
async fn an_address_that_is_taken_is_told() {
    let intake = Intake::start().await;
    let taken = intake.stack.gateway().url().replace("http://", "");
    let second = || {
        intake
            .launch("usersync-gateway", "second")
            .args(["--listen", &taken])
    };
    run(second())
        .await
        .says(1, &[&format!("listen: can't listen on {taken}")]);
    // Settings can be checked beside the gateway that runs with them.
    run(second().arg("--check"))
        .await
        .says(0, &["the settings are good"]);
}
