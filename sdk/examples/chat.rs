//! Two people, or a group, in terminals.
//!
//! ```text
//! cargo run -p moorline-sdk --example chat -- --me alice --to bob
//! cargo run -p moorline-sdk --example chat -- --me bob --to alice
//! cargo run -p moorline-sdk --example chat -- --me carol --group room
//! ```
//!
//! Lines are sent as typed: `>` says that a message was taken, `ok` that it is durable, with its
//! place in the conversation. `/history N` shows the last N messages, `/recall N` takes one back, `/read N`, `/receipts N`,
//! `/list`, `/friend UID`, `/who UID` do what they say, `/quit` or end of input leaves. With `--store FILE` it goes on where it was.
//! Stop the gateway while typing, start it again, and watch nothing get lost.

use clap::{ArgGroup, Parser};
use crossbeam_channel::{Receiver, Sender, unbounded};
use moorline_sdk::client::{CallError, Client, Notice, Pending, SendError};
use moorline_sdk::core::{Message, Target};
use moorline_sdk::im::RelationChange;
use moorline_sdk::store::FileStore;
use moorline_sdk::{Bytes, Platform};
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::Duration;

/// The application's content type for plain text.
const TEXT: u32 = 1;
/// Longest wait for the answer to a request.
const PATIENCE: Duration = Duration::from_secs(10);
/// Interval at which a pending message is reported.
const REMIND: Duration = Duration::from_secs(3);
/// Longest wait for pending messages at the end.
const LEAVE: Duration = Duration::from_secs(3);
const HISTORY_MAX: u32 = 500;

/// Chat over a Moorline gateway.
#[derive(Parser)]
#[command(group(ArgGroup::new("whom").required(true).args(["to", "group"])))]
struct Args {
    /// The gateway: HOST:PORT or tls://HOST:PORT; on this machine without TLS
    #[arg(long, default_value = "127.0.0.1:7000")]
    server: String,
    /// Authority of the gateway's certificate, in PEM, instead of the platform's
    #[arg(long)]
    ca: Option<PathBuf>,
    /// Your user id
    #[arg(long)]
    me: String,
    /// Talk to this user
    #[arg(long)]
    to: Option<String>,
    /// Talk in this group; it is made or joined on the way
    #[arg(long)]
    group: Option<String>,
    /// Your device id: each device of a user gets every message
    #[arg(long, default_value = "terminal")]
    device: String,
    /// The login token; not needed by a gateway in dev mode
    #[arg(long, conflicts_with = "token_file")]
    token: Option<String>,
    /// A file with the login token, read again when the token has expired
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Keep what is not sent yet, and where the conversations are, in this file
    #[arg(long)]
    store: Option<PathBuf>,
}

fn main() {
    if let Err(error) = run(Args::parse()) {
        eprintln!("chat: {error}");
        std::process::exit(1);
    }
}

/// The gateway's address with its scheme: a gateway on this machine that is named without one speaks plain TCP.
fn endpoint(server: &str) -> String {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host.trim_matches(['[', ']']));
    let is_here = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    if is_here { format!("tcp://{server}") } else { server.to_owned() }
}

fn run(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let target = match (&args.to, &args.group) {
        (Some(user), _) => Target::user(user),
        (None, group) => Target::group(group.as_deref().unwrap_or_default()),
    };
    let conversation = target.conversation(&args.me);
    let mut builder = Client::builder(&endpoint(&args.server))
        .user(&args.me)
        .device(&args.device, Platform::Linux)
        .on_message(show);
    if let Some(path) = &args.ca {
        builder = builder.roots_pem(&std::fs::read(path)?);
    }
    if let Some(path) = &args.store {
        builder = builder.store(FileStore::open(path)?);
    }
    if let Some(token) = &args.token {
        builder = builder.token(token);
    } else if let Some(path) = args.token_file {
        builder = builder.token_provider(move |_| match std::fs::read_to_string(&path) {
            Ok(token) => Some(token.trim().to_owned()),
            Err(error) => {
                print(&format!("-- cannot read {}: {error}", path.display()));
                None
            }
        });
    }
    let client = builder.build()?;
    let notices = client.notices().clone();
    std::thread::spawn(move || show_notices(&notices));
    if let Some(group) = &args.group {
        enter(&client, group)?;
    }
    print(&format!("-- you are {} in {conversation}; /history N, /quit", args.me));

    let (sent, marks) = unbounded();
    let (done, all_done) = unbounded::<()>();
    std::thread::spawn(move || {
        show_marks(&marks);
        drop(done);
    });
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split_once(' ').unwrap_or((&line, "")) {
            ("/quit", _) => break,
            ("/history", count) => history(&client, &conversation, count.trim().parse().unwrap_or(20)),
            ("", _) => {}
            (command, rest) if command.starts_with('/') => {
                if let Err(error) = act(&client, &conversation, command, rest.trim()) {
                    print(&format!("!! {error}"));
                }
            }
            _ => say(&client, &target, &line, &sent),
        }
    }
    drop(sent);
    // Disconnected is what we wait for: every mark was shown.
    if all_done.recv_timeout(LEAVE).is_err_and(|error| error.is_timeout()) {
        print("-- leaving with messages on their way; they may or may not arrive");
    }
    Ok(())
}

/// Commands beside sending messages.
fn act(client: &Client, conversation: &str, command: &str, rest: &str) -> Result<(), CallError> {
    let seq = rest.parse().unwrap_or(0);
    match command {
        "/list" => {
            for it in client.conversations(PATIENCE)? {
                print(&format!("   {}: {} unread of {}", it.id, it.unread, it.latest));
            }
        }
        "/read" => client.read(conversation, seq, PATIENCE)?,
        "/receipts" => {
            let receipts = client.receipts(conversation, seq, PATIENCE)?;
            print(&format!("   read by {:?}, not by {:?}", receipts.read, receipts.unread));
        }
        "/recall" => {
            for push in client.pull(conversation, seq, seq, 1, PATIENCE)?.messages {
                client.recall(conversation, push.seq, push.message_id, PATIENCE)?;
            }
        }
        "/friend" => {
            let relation = client.relate(rest, RelationChange::Befriend, "", PATIENCE)?;
            print(&format!("   {rest}: {:?}", relation.friendship()));
        }
        "/block" => drop(client.relate(rest, RelationChange::Block, "", PATIENCE)?),
        "/who" => {
            for it in client.presence(&[rest], true, PATIENCE)? {
                print(&format!("   {}: {} devices online", it.user, it.platforms.len()));
            }
        }
        _ => print(
            "-- commands: /history N, /list, /read N, /receipts N, /recall N, /friend UID, /block UID, /who UID, /quit",
        ),
    }
    Ok(())
}

/// Makes the group, or joins it if somebody else has.
fn enter(client: &Client, group: &str) -> Result<(), CallError> {
    match client.create_group(group, &[], PATIENCE) {
        Ok(_) => Ok(()),
        Err(_) => client.join(&format!("group:{group}"), PATIENCE),
    }
}

fn say(client: &Client, target: &Target, text: &str, sent: &Sender<(Pending, String)>) {
    match client.send(target.clone(), TEXT, Bytes::copy_from_slice(text.as_bytes())) {
        Ok(pending) => {
            print(&format!(">  {text}"));
            let _ = sent.send((pending, text.to_owned()));
        }
        Err(refused) => print(&format!("!! {refused}")),
    }
}

/// Shows what became of each message, in the order of sending.
fn show_marks(marks: &Receiver<(Pending, String)>) {
    for (pending, text) in marks {
        loop {
            match pending.wait_durable(REMIND) {
                Ok(receipt) => print(&format!("ok {text}  [{}]", receipt.seq)),
                Err(SendError::NotYet) => {
                    print(&format!(".. {text}"));
                    continue;
                }
                Err(SendError::Failed(failure)) => print(&format!("!! {text}: {failure}")),
            }
            break;
        }
    }
}

/// Called for every message that comes; it is acked when this returns.
fn show(message: &Message) {
    let place = format!("{} [{}]", message.conversation, message.seq);
    if let Some(happened) = &message.happened {
        return print(&format!("-- {happened:?}  ({place})"));
    }
    print(&format!("{}: {}  ({place})", message.sender, String::from_utf8_lossy(&message.payload)));
}

fn show_notices(notices: &Receiver<Notice>) {
    for notice in notices {
        match notice {
            Notice::LoggedIn { .. } => print("-- logged in"),
            Notice::Disconnected { why, retry_in } => {
                print(&format!("-- not connected ({why:?}), next try in {} ms", retry_in.as_millis()));
            }
            Notice::Hole { conversation, from, to } => {
                print(&format!("-- {conversation}: messages {from} to {to} are not to be had"));
            }
            Notice::Kicked { reason, .. } => print(&format!("-- logged out by the server: {reason}")),
            Notice::Closed(why) => print(&format!("-- {why}")),
            Notice::Signal { sender, payload, .. } => {
                print(&format!("-- {sender}: {}", String::from_utf8_lossy(&payload)));
            }
            Notice::NoEndpoints { why } => print(&format!("-- {why}")),
            Notice::New { .. }
            | Notice::App { .. }
            | Notice::FrameDropped { .. }
            | Notice::RoomEntered { .. }
            | Notice::RoomRefused { .. } => {}
        }
    }
}

fn history(client: &Client, conversation: &str, count: u32) {
    let count = count.clamp(1, HISTORY_MAX);
    let shown = client.pull(conversation, 1, 1, 1, PATIENCE).and_then(|page| {
        let mut from = page.latest.saturating_sub(u64::from(count) - 1).max(1);
        while from <= page.latest {
            let page = client.pull(conversation, from, page.latest, count, PATIENCE)?;
            for push in &page.messages {
                print(&format!(
                    "   {} [{}]: {}",
                    push.sender,
                    push.seq,
                    String::from_utf8_lossy(&push.payload)
                ));
            }
            match page.messages.last() {
                Some(last) if page.more => from = last.seq + 1,
                _ => break,
            }
        }
        Ok(())
    });
    if let Err(error) = shown {
        print(&format!("!! {error}"));
    }
}

/// Prints a whole line; a reader that went away ends the chat at its next line.
fn print(line: &str) {
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}
