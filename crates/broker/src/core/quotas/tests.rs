use std::{sync::Arc, time::Duration};

use prometheus_client::registry::Registry;
use quipu_model::NodeId;
use quipu_proto::internal::v1::{ClientQuotaChanged, MetadataRecord, metadata_record::Record};
use tokio::time::{Instant, advance, sleep};

use super::{FORGIVEN, MOST_CLIENTS, Quotas, Traffic};
use crate::metadata::{Metadata, MetadataImage};

const RATE: u64 = 1_000_000;

/// Quotas for producing: of the default, and of some client ids.
fn quotas(rates: &[(Option<&str>, u64)]) -> Quotas {
    let mut image = MetadataImage::empty(&[NodeId::new(1)]);
    for (client, rate) in rates {
        let changed = ClientQuotaChanged {
            client_id: client.map(str::to_owned),
            produce_bytes_per_second: *rate,
            fetch_bytes_per_second: 0,
        };
        let record = Some(Record::ClientQuotaChanged(changed));
        image.apply(MetadataRecord { record }).unwrap();
    }
    Quotas::new(Arc::new(Metadata::of(image)), &mut Registry::default())
}

fn produce(quotas: &Quotas, client: &str, bytes: usize) -> Duration {
    quotas.charge(client, Traffic::Produce, bytes)
}

fn clients(quotas: &Quotas) -> usize {
    quotas.produce.buckets.lock().by_client.len()
}

#[tokio::test(start_paused = true)]
async fn a_client_that_waits_as_it_is_told_keeps_its_rate() {
    const MINUTE: Duration = Duration::from_secs(60);
    for request in [1_000, 64_000, 700_000, 5_000_000] {
        let quotas = quotas(&[(None, RATE)]);
        let began = Instant::now();
        let mut sent = 0;
        while began.elapsed() < MINUTE {
            sent += request;
            sleep(produce(&quotas, "a", request)).await;
        }
        let rate = sent as f64 / began.elapsed().as_secs_f64();
        let share = rate / RATE as f64;
        // The burst is a sixtieth.
        assert!((0.97..1.03).contains(&share), "{request}: {share}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_was_quiet_may_send_a_seconds_worth_and_no_more() {
    let quotas = quotas(&[(None, RATE)]);
    for _ in 0..3 {
        assert_eq!(produce(&quotas, "a", RATE as usize), Duration::ZERO);
        let wait = produce(&quotas, "a", RATE as usize / 2);
        assert_eq!(wait, Duration::from_millis(500));
        assert_eq!(quotas.owed("a", Traffic::Produce), wait);
        advance(Duration::from_secs(3600)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn no_wait_is_longer_than_half_a_minute_and_it_ends() {
    let quotas = quotas(&[(None, 1)]);
    let longest = Duration::from_secs(30);
    assert_eq!(produce(&quotas, "a", usize::MAX), longest);
    assert_eq!(produce(&quotas, "a", 1 << 30), longest);
    let began = Instant::now();
    quotas.settle("a", Traffic::Produce).await;
    assert_eq!(began.elapsed(), longest);
}

#[tokio::test(start_paused = true)]
async fn many_streams_of_one_client_share_its_rate() {
    let quotas = Arc::new(quotas(&[(Some("a"), RATE)]));
    let began = Instant::now();
    let streams = (0..50).map(|_| {
        let quotas = Arc::clone(&quotas);
        tokio::spawn(async move {
            for _ in 0..4 {
                quotas.settle("a", Traffic::Produce).await;
                produce(&quotas, "a", RATE as usize);
            }
        })
    });
    for stream in streams.collect::<Vec<_>>() {
        stream.await.unwrap();
    }
    // 200 seconds' worth, of which the first is the burst, and the last need not be waited for.
    let seconds = began.elapsed().as_secs_f64();
    assert!((194.0..=200.0).contains(&seconds), "{seconds}");
}

#[tokio::test(start_paused = true)]
async fn clients_and_kinds_of_traffic_do_not_touch_one_another() {
    let quotas = quotas(&[(None, RATE), (Some("slow"), 1000)]);
    assert_eq!(produce(&quotas, "slow", 11_000), Duration::from_secs(10));
    assert_eq!(produce(&quotas, "other", 11_000), Duration::ZERO);
    assert_eq!(
        quotas.charge("slow", Traffic::Fetch, 1 << 30),
        Duration::ZERO
    );
    assert_eq!(quotas.most_at_once("slow", Traffic::Produce), 1000);
    assert_eq!(quotas.most_at_once("slow", Traffic::Fetch), usize::MAX);
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_names_cost_bounded_memory_and_share_one_quota() {
    let quotas = quotas(&[(None, RATE), (Some("known"), RATE)]);
    for number in 0..10_000 {
        produce(&quotas, &format!("stranger {number}"), RATE as usize);
    }
    assert_eq!(clients(&quotas), MOST_CLIENTS);
    // The rest share: another name helps nobody, and a name too long to keep is one of them.
    assert!(produce(&quotas, "stranger 10001", 1) > Duration::from_secs(20));
    assert!(produce(&quotas, &"x".repeat(10_000), 1) > Duration::from_secs(20));
    assert_eq!(produce(&quotas, "known", RATE as usize), Duration::ZERO);
    assert_eq!(clients(&quotas), MOST_CLIENTS + 1);

    advance(FORGIVEN).await;
    assert_eq!(produce(&quotas, "newcomer", RATE as usize), Duration::ZERO);
    assert_eq!(clients(&quotas), 1, "the quiet ones are forgotten");
}

#[tokio::test(start_paused = true)]
async fn without_quotas_nothing_is_counted() {
    let quotas = quotas(&[]);
    assert_eq!(produce(&quotas, "a", usize::MAX), Duration::ZERO);
    assert_eq!(clients(&quotas), 0);
}
