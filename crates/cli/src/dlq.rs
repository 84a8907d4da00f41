//! `quipu dlq`.

use std::io::{Write, stdout};

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use quipu_client::{
    Client, DeadLetter, DeadLetters, Letters, Offset, StoredRecord, TimestampMs, dead_letter_topic,
};
use serde_json::{Value, json};

use crate::{connect::ConnectArgs, format::Format, table};

#[derive(Debug, Args)]
pub(crate) struct DlqArgs {
    #[command(subcommand)]
    command: DlqCommand,
}

#[derive(Debug, Subcommand)]
enum DlqCommand {
    /// List dead letters and why they failed; those that were sent back already only with --all
    List {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        which: Which,
        /// Those too that were sent back already
        #[arg(long)]
        all: bool,
        /// Stop after so many
        #[arg(long, default_value_t = 100, value_name = "N")]
        limit: usize,
        /// Print JSON instead of text, one object a line
        #[arg(long)]
        json: bool,
    },
    /// Show one dead letter with all that is known of it
    Show {
        #[command(flatten)]
        place: Place,
        #[arg(long, value_name = "P")]
        partition: u32,
        #[arg(long, value_name = "OFFSET")]
        offset: u64,
        /// Print JSON instead of text
        #[arg(long)]
        json: bool,
    },
    /// Send dead letters back to the topic that they came from: all that were not sent back yet, or some of them. It is remembered
    /// which ones; done again after it broke off, it goes on, and sends at most a thousand a second time
    Redrive {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// The topic that the records came from; without --group, the dead-letter topic itself
    topic: String,
    /// The group whose worker failed at them
    #[arg(long, short, value_name = "GROUP")]
    group: Option<String>,
    #[command(flatten)]
    connect: ConnectArgs,
}

impl Place {
    fn letters(&self, client: &Client) -> Result<DeadLetters> {
        let topic = match &self.group {
            Some(group) => dead_letter_topic(&self.topic, group)?,
            None => self.topic.clone(),
        };
        Ok(DeadLetters::new(client, topic))
    }
}

#[derive(Debug, Args)]
struct Which {
    /// Only those of this partition of the dead-letter topic
    #[arg(long, value_name = "P")]
    partition: Option<u32>,
    /// Only those from this offset on
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,
    /// Only those before this offset
    #[arg(long, value_name = "OFFSET")]
    to: Option<u64>,
    /// Only those of records with this key
    #[arg(long, value_name = "KEY")]
    key: Option<String>,
}

impl Which {
    fn letters(self) -> Letters {
        Letters {
            partition: self.partition,
            from: self.from.map(Offset::new),
            to: self.to.map(Offset::new),
            key: self.key.map(Into::into),
            redriven: false,
        }
    }
}

pub(crate) async fn run(args: DlqArgs) -> Result<()> {
    match args.command {
        DlqCommand::List {
            place,
            which,
            all,
            limit,
            json,
        } => {
            let client = place.connect.connect().await?;
            let which = Letters {
                redriven: all,
                ..which.letters()
            };
            list(&place.letters(&client)?, &which, limit, json).await
        }
        DlqCommand::Show {
            place,
            partition,
            offset,
            json,
        } => {
            let client = place.connect.connect().await?;
            show(&place.letters(&client)?, partition, offset, json).await
        }
        DlqCommand::Redrive { place, which } => {
            let client = place.connect.connect().await?;
            redrive(&place.letters(&client)?, &which.letters()).await
        }
    }
}

/// Up to `limit` letters, and whether there are more.
async fn read(
    letters: &DeadLetters,
    which: &Letters,
    limit: usize,
) -> Result<(Vec<DeadLetter>, bool)> {
    let (mut found, mut more) = (Vec::new(), false);
    let visit = |letter| {
        more = found.len() == limit;
        if !more {
            found.push(letter);
        }
        !more
    };
    letters.read(which, visit).await?;
    Ok((found, more))
}

async fn list(letters: &DeadLetters, which: &Letters, limit: usize, json: bool) -> Result<()> {
    let (found, more) = read(letters, which, limit).await?;
    let mut out = stdout().lock();
    if json {
        for letter in &found {
            writeln!(out, "{}", letter_json(letter)?)?;
        }
        return Ok(());
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    let headings = [
        "PARTITION",
        "OFFSET",
        "FAILED",
        "ATTEMPTS",
        "FROM",
        "KEY",
        "CAUSE",
    ];
    table::write(&mut out, headings, &rows)?;
    if more {
        writeln!(out, "and more: see --limit")?;
    }
    Ok(())
}

fn row(letter: &DeadLetter) -> [String; 7] {
    let trail = letter.trail.as_ref();
    let of = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mark = if letter.redriven { " (sent back)" } else { "" };
    let cause = trail.map(|trail| shown(trail.cause.as_bytes(), 100));
    [
        letter.partition.to_string(),
        letter.offset.to_string(),
        of(trail.and_then(|trail| trail.failed_at.to_rfc3339())),
        of(trail.map(|trail| trail.attempts.to_string())),
        of(trail.map(|t| format!("{}/{}/{}", t.topic, t.partition, t.offset))),
        of(letter.key.as_ref().map(|key| shown(key, 32))),
        of(cause) + mark,
    ]
}

/// The start of bytes, so that a terminal can show it in one line.
fn shown(bytes: &[u8], most: usize) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut shown = String::new();
    for (at, c) in text.chars().enumerate() {
        match c {
            _ if at == most => {
                shown.push('…');
                break;
            }
            c if c.is_control() || c == '\\' => shown.extend(c.escape_default()),
            c => shown.push(c),
        }
    }
    shown
}

async fn show(letters: &DeadLetters, partition: u32, offset: u64, json: bool) -> Result<()> {
    let which = Letters {
        partition: Some(partition),
        from: Some(Offset::new(offset)),
        to: Some(Offset::new(offset.saturating_add(1))),
        key: None,
        redriven: true,
    };
    let (found, _) = read(letters, &which, 1).await?;
    let Some(letter) = found.first() else {
        bail!(
            "there is no dead letter at offset {offset} of partition {partition}: see quipu dlq list"
        );
    };
    let mut out = stdout().lock();
    if json {
        writeln!(out, "{}", letter_json(letter)?)?;
        return Ok(());
    }
    if let Some(trail) = &letter.trail {
        let time = |time: TimestampMs| time.to_rfc3339().unwrap_or_else(|| "-".to_owned());
        let from = format!("{}/{}/{}", trail.topic, trail.partition, trail.offset);
        for (name, value) in [
            ("from", from),
            ("group", trail.group.clone()),
            ("attempts", trail.attempts.to_string()),
            ("first failed", time(trail.first_failed_at)),
            ("failed", time(trail.failed_at)),
            ("cause", trail.cause.clone()),
            ("sent back", letter.redriven.to_string()),
        ] {
            writeln!(out, "{name:13} {}", shown(value.as_bytes(), usize::MAX))?;
        }
    }
    let bytes = |bytes: Option<&[u8]>| {
        bytes.map_or_else(|| "-".to_owned(), |bytes| shown(bytes, usize::MAX))
    };
    writeln!(out, "{:13} {}", "key", bytes(letter.key.as_deref()))?;
    for header in &letter.headers {
        let (name, value) = (header.key_str(), bytes(header.value.as_deref()));
        writeln!(out, "{:13} {name}: {value}", "header")?;
    }
    let value = match letter.value_left {
        true => "too large to come along: it is where the record came from".to_owned(),
        false => bytes(letter.value.as_deref()),
    };
    writeln!(out, "{:13} {value}", "value")?;
    Ok(())
}

/// The record as `quipu consume` prints it, with what is known of its failure.
fn letter_json(letter: &DeadLetter) -> Result<Value> {
    let record = StoredRecord {
        offset: letter.offset,
        timestamp: letter.timestamp,
        key: letter.key.clone(),
        value: letter.value.clone(),
        headers: letter.headers.clone(),
    };
    let mut text = Vec::new();
    Format::Json.write(&mut text, "", letter.partition, &record)?;
    let mut object: Value = serde_json::from_slice(&text)?;
    if let Some(fields) = object.as_object_mut() {
        fields.remove("topic");
    }
    object["redriven"] = letter.redriven.into();
    object["value_left"] = letter.value_left.into();
    if let Some(trail) = &letter.trail {
        object["failure"] = json!({
            "topic": trail.topic.as_ref(),
            "partition": trail.partition,
            "offset": trail.offset.get(),
            "timestamp": trail.timestamp.get(),
            "group": trail.group,
            "attempts": trail.attempts,
            "first_failed_at": trail.first_failed_at.get(),
            "failed_at": trail.failed_at.get(),
            "cause": trail.cause,
        });
    }
    Ok(object)
}

async fn redrive(letters: &DeadLetters, which: &Letters) -> Result<()> {
    let redriven = letters.redrive(which).await?;
    let mut out = stdout().lock();
    write!(out, "sent back: {}", redriven.sent)?;
    if redriven.kept > 0 {
        write!(
            out,
            "; kept: {}, which lack their value or are no worker's (see quipu dlq list)",
            redriven.kept
        )?;
    }
    writeln!(out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn whatever_is_shown_is_one_line_and_drives_no_terminal() {
        assert_eq!(
            shown("it can't \"größer\"".as_bytes(), 100),
            "it can't \"größer\""
        );
        assert_eq!(shown(b"a\nb\x1b[0m\\", 100), "a\\nb\\u{1b}[0m\\\\");
        assert_eq!(shown(b"abcdef", 3), "abc…");
        assert_eq!(shown(b"abc", 3), "abc");
    }
}
