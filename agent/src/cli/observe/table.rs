//! Lines as rows of a table that fits the terminal.
//!
//! In: lines. Out: rows. Always: a row is as wide as the screen or narrower, and columns stand still: widths come from
//! the screen's width alone, for the lines to come are not known. From 120 columns on there is more to see: service,
//! packets, flows, what decided (`!`: policy says otherwise than the kernel did), from 180 on the process; where the lines come live, `EVENT` says what happened.

use jiff::tz::TimeZone;

use crate::wire::view::{LineView, present};

use super::screen::{Paint, Screen, cell, short};

/// What one column shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Time,
    Event,
    Reporter,
    Action,
    Source,
    Dest,
    Service,
    Port,
    Packets,
    Bytes,
    Flows,
    Process,
    Why,
}

impl Column {
    fn title(self) -> &'static str {
        match self {
            Self::Time => "TIME",
            Self::Event => "EVENT",
            Self::Reporter => "REP",
            Self::Action => "ACTION",
            Self::Source => "SOURCE",
            Self::Dest => "DEST",
            Self::Service => "SERVICE",
            Self::Port => "PORT",
            Self::Packets => "PKTS IN/OUT",
            Self::Bytes => "IN/OUT",
            Self::Flows => "FLOWS",
            Self::Process => "PROCESS",
            Self::Why => "POLICY",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Self::Packets | Self::Bytes | Self::Flows)
    }
}

pub struct Table {
    screen: Screen,
    live: bool,
    columns: Vec<(Column, usize)>,
    zone: TimeZone,
}

/// Of an end's name: below it a table is no table.
const LEAST_NAME: usize = 8;

impl Table {
    /// `live`: rows tell of connections as they happen.
    pub fn new(screen: Screen, live: bool, zone: TimeZone) -> Self {
        use Column as C;
        let mut columns = vec![(C::Time, 8)];
        if live {
            columns.push((C::Event, 5));
        }
        columns.extend([(C::Reporter, 3), (C::Action, 6), (C::Source, 0), (C::Dest, 0)]);
        let wide = screen.width >= 120;
        if wide {
            columns.push((C::Service, 0));
        }
        columns.push((C::Port, 9));
        if wide {
            columns.push((C::Packets, 11));
        }
        columns.push((C::Bytes, 11));
        if wide {
            columns.push((C::Flows, 5));
        }
        if screen.width >= 180 {
            columns.push((C::Process, 0));
        }
        if wide {
            columns.push((C::Why, 0));
        }
        let fixed: usize = columns.iter().map(|(_, width)| width).sum::<usize>() + columns.len() - 1;
        // Ends get three parts each, service, process and policy two each.
        let parts = |column: C| match column {
            C::Source | C::Dest => 3,
            C::Service | C::Process | C::Why => 2,
            _ => 0,
        };
        let all: usize = columns.iter().map(|(column, _)| parts(*column)).sum();
        let rest = screen.width.saturating_sub(fixed);
        for (column, width) in columns.iter_mut().filter(|(column, _)| parts(*column) > 0) {
            *width = (rest * parts(*column) / all).max(LEAST_NAME);
        }
        Self { screen, live, columns, zone }
    }

    pub fn header(&self, out: &mut String) {
        let titles: Vec<String> = self
            .columns
            .iter()
            .map(|(column, width)| cell(column.title(), *width, column.is_number()))
            .collect();
        self.screen.paint(Paint::Bold, titles.join(" ").trim_end(), out);
        out.push('\n');
    }

    /// `event`: what happened, where the row is live.
    pub fn row(&self, line: &LineView<'_>, event: &str, out: &mut String) {
        let denied = line.action == "deny";
        let mismatch = line.policy_mismatch == Some(true);
        let last = self.columns.len().saturating_sub(1);
        for (n, (column, width)) in self.columns.iter().enumerate() {
            if n > 0 {
                out.push(' ');
            }
            let text = match column {
                Column::Time => self.time(line.end_time),
                Column::Event => event.to_owned(),
                Column::Reporter => line.reporter.to_string(),
                Column::Action => line.action.to_string(),
                Column::Source => source(line),
                Column::Dest => dest(line),
                Column::Service => service(line).unwrap_or_default(),
                Column::Port => port(line),
                Column::Packets => format!("{}/{}", short(line.packets_in), short(line.packets_out)),
                Column::Bytes => format!("{}/{}", short(line.bytes_in), short(line.bytes_out)),
                Column::Flows => short(line.num_flows),
                Column::Process => present(&line.process_name).unwrap_or_default().to_owned(),
                Column::Why if mismatch => format!("! {}", why(line)),
                Column::Why => why(line),
            };
            let paint = match column {
                Column::Action if denied => Paint::Red,
                Column::Action => Paint::Green,
                Column::Why if mismatch => Paint::Yellow,
                Column::Time => Paint::Dim,
                _ => Paint::Plain,
            };
            let text = cell(&text, *width, column.is_number());
            self.screen.paint(paint, if n == last { text.trim_end() } else { &text }, out);
        }
        out.push('\n');
    }

    fn time(&self, seconds: i64) -> String {
        match jiff::Timestamp::from_second(seconds) {
            Ok(time) => time.to_zoned(self.zone.clone()).strftime("%H:%M:%S").to_string(),
            Err(_) => "-".to_owned(),
        }
    }

    /// Fits the terminal as it is now; `true`: its width is another than before.
    pub fn fit(&mut self) -> bool {
        let screen = self.screen.again();
        let changed = screen.width != self.screen.width;
        if changed {
            *self = Self::new(screen, self.live, self.zone.clone());
        }
        changed
    }

    pub fn screen(&self) -> &Screen {
        &self.screen
    }
}

pub fn source(line: &LineView<'_>) -> String {
    let ip = line.source_ip.or_else(|| only(&line.source_ips));
    end(&line.source_namespace, &line.source_name, &line.source_name_aggr, &line.source_type, ip, None)
}

pub fn dest(line: &LineView<'_>) -> String {
    let domain = line.dest_domains.iter().flatten().next().map(|domain| &**domain);
    let ip = line.dest_ip.or_else(|| only(&line.dest_ips));
    end(&line.dest_namespace, &line.dest_name, &line.dest_name_aggr, &line.dest_type, ip, domain)
}

/// Of several addresses none stands for the others.
fn only(ips: &Option<Vec<std::net::IpAddr>>) -> Option<std::net::IpAddr> {
    match ips.as_deref() {
        Some([ip]) => Some(*ip),
        _ => None,
    }
}

fn end(
    namespace: &str,
    name: &str,
    name_aggr: &str,
    kind: &str,
    ip: Option<std::net::IpAddr>,
    domain: Option<&str>,
) -> String {
    let name = present(name).unwrap_or(name_aggr);
    match (present(namespace), kind) {
        (Some(namespace), _) => format!("{namespace}/{name}"),
        (None, "net") => match (domain, ip) {
            (Some(domain), _) => format!("{name} {domain}"),
            (None, Some(ip)) => format!("{name} {ip}"),
            (None, None) => name.to_owned(),
        },
        (None, _) => name.to_owned(),
    }
}

pub fn service(line: &LineView<'_>) -> Option<String> {
    let name = present(&line.dest_service_name)?;
    let port = present(&line.dest_service_port).map(str::to_owned);
    let port = port.or_else(|| line.dest_service_port_num.map(|port| port.to_string())).unwrap_or_default();
    Some(match present(&line.dest_service_namespace) {
        Some(namespace) => format!("{namespace}/{name}:{port}"),
        None => format!("{name}:{port}"),
    })
}

pub fn port(line: &LineView<'_>) -> String {
    match line.dest_port {
        Some(port) => format!("{}/{port}", line.proto),
        None => line.proto.to_string(),
    }
}

/// The policy that decided, and what the kernel says.
pub fn why(line: &LineView<'_>) -> String {
    let decided = line.policies.as_ref().and_then(|policies| policies.enforced_policies.last());
    let mut text = decided.and_then(|entry| entry.split('|').nth(2)).unwrap_or("-").to_owned();
    if let Some([reason, ..]) = line.drop_reasons.as_deref() {
        text.push(' ');
        text.push_str(reason);
    }
    text
}
