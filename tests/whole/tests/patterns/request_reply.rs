use std::{sync::Arc, time::Duration};

use anyhow::Result;
use quipu_client::{
    Client, Failure, NewTopic, Record, Reply, RequestError, Requester, RequesterConfig, Responder,
    Work, WorkerConfig,
};

/// Asks for two words in capitals, of which one has none. Gives back what came of each.
pub async fn run(client: &Client) -> Result<Vec<Result<String, RequestError>>> {
    let admin = client.admin();
    for topic in ["capitals", "capitals-replies"] {
        admin
            .create_topic(NewTopic::new(topic).partitions(2))
            .await?;
    }

    let config = WorkerConfig::new("capitals", "capitals");
    let responder = Responder::start(client, config, |work: Arc<Work>| async move {
        let word = work.record.value.as_deref().unwrap_or_default();
        let word = str::from_utf8(word).map_err(Failure::permanent)?;
        if word.chars().all(|c| c.is_ascii_digit()) {
            // The requester hears of it at once.
            return Err(Failure::permanent("digits have no capitals"));
        }
        Ok(Reply::from(word.to_uppercase()))
    })
    .await?;

    let requester = Requester::start(
        client,
        RequesterConfig {
            timeout: Duration::from_secs(20),
            ..RequesterConfig::new("capitals-replies")
        },
    )
    .await?;
    let mut replies = Vec::new();
    for word in ["apples", "2"] {
        let request = Record::new("capitals").value(word.as_bytes());
        let reply = requester.request(request).await;
        replies.push(reply.map(|reply| {
            let value = reply.value.unwrap_or_default();
            String::from_utf8_lossy(&value).into_owned()
        }));
    }
    responder.close().await?;
    Ok(replies)
}
