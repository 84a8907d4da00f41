//! Times of day as people write them.

use crate::TimestampMs;

impl TimestampMs {
    /// Reads an RFC 3339 date and time, such as `2026-11-24T10:00:00Z` or `2026-11-24 10:00:00.250+01:00`. What is finer than a
    /// millisecond is cut off. `None` where it is not one.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        parse(text)
    }

    /// The time as RFC 3339 writes it, in UTC: `2026-11-24T10:00:00.250Z`. `None` outside the years 0 to 9999.
    pub fn to_rfc3339(self) -> Option<String> {
        let (seconds, millis) = (self.get().div_euclid(1000), self.get().rem_euclid(1000));
        let (days, clock) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let (year, month, day) = date(days);
        if !(0..=9999).contains(&year) {
            return None;
        }
        let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
        Some(format!(
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z"
        ))
    }
}

/// The date so many days after 1970-01-01, by years that begin in March, so that a leap day is a year's last.
fn date(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

fn parse(text: &str) -> Option<TimestampMs> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (clock, rest) = rest.split_at_checked(8)?;
    let [year, month, day] = fields(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = fields(clock, ':', [2, 2, 2])?;
    let (millis, zone) = fraction(rest)?;
    let valid = (1..=12).contains(&month)
        && (1..=days_in_month(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        // A leap second is read as the one after it.
        && second <= 60;
    if !valid {
        return None;
    }
    let seconds = days_since_epoch(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    let seconds = seconds - zone_seconds(zone)?;
    Some(TimestampMs::new(seconds * 1000 + millis))
}

fn fields(text: &str, separator: char, lengths: [usize; 3]) -> Option<[i64; 3]> {
    let mut parts = text.split(separator);
    let mut found = [0; 3];
    for (field, length) in found.iter_mut().zip(lengths) {
        *field = number(parts.next()?, length)?;
    }
    parts.next().is_none().then_some(found)
}

fn number(text: &str, length: usize) -> Option<i64> {
    let plain = text.len() == length && text.bytes().all(|b| b.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Milliseconds from a fraction of a second, and what follows it.
fn fraction(text: &str) -> Option<(i64, &str)> {
    let Some(text) = text.strip_prefix('.') else {
        return Some((0, text));
    };
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, rest) = text.split_at(end);
    let millis = format!("{digits:0<3}");
    let millis = millis.get(..3)?.parse().ok()?;
    (!digits.is_empty()).then_some((millis, rest))
}

/// How far a zone's clocks are ahead of UTC.
fn zone_seconds(zone: &str) -> Option<i64> {
    if zone == "Z" || zone == "z" {
        return Some(0);
    }
    let (sign, zone) = match zone.split_at_checked(1)? {
        ("+", zone) => (1, zone),
        ("-", zone) => (-1, zone),
        _ => return None,
    };
    let (hours, minutes) = zone.split_once(':')?;
    let (hours, minutes) = (number(hours, 2)?, number(minutes, 2)?);
    (hours < 24 && minutes < 60).then_some(sign * (hours * 3600 + minutes * 60))
}

fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

fn days_in_month(year: i64, month: i64) -> i64 {
    match month {
        2 => 28 + i64::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let days_before_year = |year: i64| {
        let past = year - 1;
        past * 365 + past / 4 - past / 100 + past / 400
    };
    let in_months: i64 = (1..month).map(|month| days_in_month(year, month)).sum();
    days_before_year(year) - days_before_year(1970) + in_months + day - 1
}

#[cfg(test)]
mod tests {
    use super::TimestampMs;

    #[test]
    fn times_that_rfc_3339_allows() {
        for (text, ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1985-04-12T23:20:50.52Z", 482_196_050_520),
            ("1996-12-19T16:39:57-08:00", 851_042_397_000),
            ("2000-03-01T00:00:00Z", 951_868_800_000),
            ("2024-02-29 12:00:00.1239+05:30", 1_709_188_200_123),
            ("2026-11-24T10:00:00z", 1_795_514_400_000),
        ] {
            assert_eq!(
                TimestampMs::parse_rfc3339(text).map(TimestampMs::get),
                Some(ms),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2026",
            "2026-11-24",
            "2026-11-24T10:00:00",
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-02-28T24:00:00Z",
            "2026-02-28T10:00:00.Z",
            "2026-02-28T10:00:00+1:00",
            "2026-02-28T10:00:00Zulu",
            "2026-0é-28T10:00:00Z",
        ] {
            assert_eq!(TimestampMs::parse_rfc3339(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_as_the_same_time() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
            (951_868_799_999, "2000-02-29T23:59:59.999Z"),
            (1_795_514_400_250, "2026-11-24T10:00:00.250Z"),
        ] {
            assert_eq!(TimestampMs::new(ms).to_rfc3339().as_deref(), Some(text));
        }
        for ms in (0..100_000).map(|n| n * 43_201_017 - 62_000_000_000_000 + n) {
            let time = TimestampMs::new(ms);
            let text = time.to_rfc3339().unwrap();
            assert_eq!(TimestampMs::parse_rfc3339(&text), Some(time), "{text}");
        }
        assert_eq!(TimestampMs::new(i64::MAX).to_rfc3339(), None);
        assert_eq!(TimestampMs::new(i64::MIN).to_rfc3339(), None);
    }
}
