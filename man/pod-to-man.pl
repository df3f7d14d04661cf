#!/usr/bin/env perl
# SPDX-License-Identifier: LGPL-2.1-or-later
# pod-to-man.pl VERSION PAGE.pod OUTPUT - one of our man pages, or an error.
# OUTPUT ends in the number of its section.
#
# Errors beside what podchecker finds (its warnings count): a standard section
# is missing or empty, a line of an example is too long for a terminal, a link
# to one of our pages leads nowhere.

use strict;
use warnings;

my ($version, $pod, $out) = @ARGV;
defined $out or die "usage: $0 VERSION PAGE.pod OUTPUT\n";
my ($folder, $page) = $pod =~ m{^(.*?)([^/]+)\.pod$}
  or die "$0: $pod: not a .pod file\n";
$folder = "./" if $folder eq "";
my ($section) = $out =~ /\.(\d)$/ or die "$0: $out: no section\n";

# Where a page is that is no program.
sub section_of { return $_[0] =~ /-qmp$/ ? 7 : 1; }

# A page's headings and items, by their plain text.
sub anchors {
  my ($file) = @_;
  my %anchors;
  local $_;                     # the caller loops over it
  open my $fh, "<", $file or return;
  while (<$fh>) {
    next unless /^=(?:head\d|item)\s+(.*\S)/;
    my $text = $1;
    1 while $text =~ s/[A-Z]<([^<>]*)>/$1/;
    $anchors{$text} = 1;
  }
  return \%anchors;
}

my @problems = grep { !/pod syntax OK/ }
  split /\n/, `podchecker -warnings -warnings '$pod' 2>&1`;

my %section;                    # heading => has text
my $heading = "";
open my $fh, "<", $pod or die "$0: $pod: $!\n";
while (<$fh>) {
  chomp;
  if (/^=head1\s+(.*\S)/) {
    $heading = $1;
    $section{$heading} = 0;
  } elsif (/\S/ && !/^=/) {
    $section{$heading} = 1;
  }
  push @problems, "$pod:$.: a verbatim line has more than 78 columns"
    if /^ / && length > 78;
  while (/L<(?:[^<>|]*\|)?([^<>|]+)>/g) {
    my ($name, $anchor) = split m{/}, $1, 2;
    next unless $name =~ /^(.*(?:fleece).*)\((\d)\)$/;
    my $anchors = anchors ("$folder$1.pod");
    if (!defined $anchors || $2 ne section_of ($1)) {
      push @problems, "$pod:$.: there is no page $name";
    } elsif (defined $anchor) {
      $anchor =~ s/^"(.*)"$/$1/;
      push @problems, "$pod:$.: there is no '$anchor' in $name"
        unless $anchors->{$anchor};
    }
  }
}
close $fh;

my @wanted = ("NAME", "SYNOPSIS", "DESCRIPTION", "EXAMPLES", "SEE ALSO");
push @wanted, "EXIT STATUS" unless $page =~ /-plugin$/ || $section != 1;
for (@wanted) {
  push @problems, "$pod: section $_ is missing" unless exists $section{$_};
  push @problems, "$pod: section $_ is empty"
    if exists $section{$_} && !$section{$_};
}

if (@problems) {
  print STDERR "$_\n" for @problems;
  exit 1;
}

system ("pod2man", "-u", "--section=$section", "--name=" . uc $page,
        "--center=nbdfleece", "--release=nbdfleece-$version", $pod,
        "$out.tmp") == 0
  or die "$0: pod2man failed\n";
rename "$out.tmp", $out or die "$0: $out: $!\n";
