//! What to try next, with the ports of this very stack.

use usersync_stack::Stack;

use crate::terminal;

/// Prints commands that can be pasted.
pub(super) fn print(stack: &Stack) {
    let style = terminal::stdout();
    let nats = format!("nats -s {} --user operator", stack.nats.url());
    let password = stack.nats.password_file("operator");
    let nats = format!("{nats} --password \"$(cat {})\"", password.display());
    let gateway = stack.gateway().url();
    let user_service = stack.example("user-service").url();
    let basic_server = stack.example("basic-server").url();
    let json = "-H 'content-type: application/json' -d";
    let event = r#"{"user_id":9000042,"username":"zoe","email":"zoe@example.com","data":{"phone":"+49 1"},"source":"me"}"#;
    let newcomer = r#"{"username":"max","email":"max@example.com","password":"correct horse"}"#;
    let groups = [
        (
            "with the NATS CLI (https://github.com/nats-io/natscli):",
            vec![
                format!("{nats} sub 'user.>'"),
                format!("{nats} pub user.created '{event}'"),
                format!("{nats} stream ls"),
                format!("{nats} consumer info USER_STATE unified-auth"),
                format!("{nats} pub user.check.unified-auth ''"),
                format!("{nats} stream get USER_CHECK --last-for user.check.result.unified-auth"),
            ],
        ),
        (
            "over HTTP:",
            vec![
                format!("curl -s {basic_server}/api/v1/auth/register {json} '{newcomer}'"),
                format!("curl -s {gateway}/v1/users/1"),
                format!("curl -s '{user_service}/api/v1/users?limit=3'"),
                format!("curl -s {gateway}/metrics"),
                format!("redis-cli -p {} get user:1", stack.redis.port()),
            ],
        ),
        (
            "one more worker, which shares the load with the one that runs:",
            vec![format!(
                "USERSYNC_NATS__USER=worker USERSYNC_NATS__PASSWORD=file:{} USERSYNC_EGRESS__SECRETS={} cargo run -p usersync-worker -- \
                 --target unified-auth --nats-url {} --targets {}",
                stack.nats.password_file("worker").display(),
                stack.granted(),
                stack.nats.url(),
                stack.catalogue().display()
            )],
        ),
    ];
    println!("\n{}", style.bold("Try next"));
    for (title, commands) in groups {
        println!("  {title}");
        for command in commands {
            println!("    {command}");
        }
    }
    println!("\nData and logs are in {}.", stack.dir().display());
    println!("Everything stays up until Ctrl-C.");
}
