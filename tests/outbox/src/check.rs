//! Whether a topic holds what a database says.

use std::collections::{BTreeMap, HashMap};

/// An order that was committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) id: i64,
    pub(crate) customer: String,
    /// Its place among the customer's, from 1 on.
    pub(crate) number: i64,
}

/// What is wrong with a topic whose partitions hold these events in this order, given all orders that were committed.
pub(crate) fn faults(orders: &[Order], partitions: &[Vec<Order>]) -> Vec<String> {
    let mut missing: HashMap<i64, &Order> = orders.iter().map(|order| (order.id, order)).collect();
    let committed = missing.clone();
    let mut last: BTreeMap<&str, i64> = BTreeMap::new();
    let mut faults = Vec::new();
    for event in partitions.iter().flatten() {
        let Some(order) = committed.get(&event.id) else {
            faults.push(format!("published, but never committed: {event:?}"));
            continue;
        };
        if *order != event {
            faults.push(format!("published as {event:?}: {order:?}"));
        }
        if missing.remove(&event.id).is_none() {
            faults.push(format!("published again: {event:?}"));
            continue;
        }
        let last = last.entry(&event.customer).or_default();
        if event.number <= *last {
            faults.push(format!("out of order, behind number {last}: {event:?}"));
        }
        *last = event.number;
    }
    faults.extend(
        missing
            .values()
            .map(|order| format!("never published: {order:?}")),
    );
    faults
}

#[cfg(test)]
mod tests {
    use super::{Order, faults};

    fn order(id: i64, customer: &str, number: i64) -> Order {
        Order {
            id,
            customer: customer.to_owned(),
            number,
        }
    }

    /// What is wrong with these events, where anna ordered twice and bert once.
    fn found(partitions: &[&[Order]]) -> Vec<String> {
        let orders = [
            order(1, "anna", 1),
            order(2, "anna", 2),
            order(3, "bert", 1),
        ];
        let partitions: Vec<_> = partitions.iter().map(|events| events.to_vec()).collect();
        faults(&orders, &partitions)
    }

    #[test]
    fn each_fault_is_named_and_a_sound_topic_has_none() {
        let (a1, a2, b1) = (
            order(1, "anna", 1),
            order(2, "anna", 2),
            order(3, "bert", 1),
        );
        let sound = [a1.clone(), b1.clone(), a2.clone()];
        assert!(found(&[&sound]).is_empty());
        assert!(found(&[&[a1.clone(), a2.clone()], std::slice::from_ref(&b1)]).is_empty());

        let says = |partitions: &[&[Order]], what: &str| {
            let found = found(partitions);
            assert!(found.len() == 1 && found[0].starts_with(what), "{found:?}");
        };
        says(&[&sound[..2]], "never published");
        says(&[&sound, std::slice::from_ref(&b1)], "published again");
        says(&[&[a2.clone(), a1.clone(), b1.clone()]], "out of order");
        says(
            &[&sound, &[order(4, "bert", 2)]],
            "published, but never committed",
        );
        says(&[&[a1, a2], &[order(3, "bert", 2)]], "published as");
    }
}
